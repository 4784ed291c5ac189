"""Incremental writing of a blob: encoded blocks wait in memory or in a spool file until all sizes are known."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec.bits import FormatError, write_varint
from makeweight_huffman.codec.entries import CHUNK, encode_name, padding_of, write_entry
from makeweight_huffman.codec.plan import FIRST_VERSION
from makeweight_huffman.codec.tensor import Tensor, encode_elements


class BlobWriter:
    """Encodes tensors as they are added. Lengths precede the blocks in a blob, so that blocks must wait.

    Args:
        spool: file, open for reading and writing, that holds the waiting blocks; None keeps them in memory.
        threads: number of threads that encode the blocks of large tensors.
    """

    def __init__(self, spool: BinaryIO | None = None, threads: int = 1) -> None:
        self._spool = spool
        self._threads = threads
        self._blocks: deque[bytes] = deque()
        self._heads: list[tuple[bytes, int]] = []  # bytes before a tensor's blocks, size of its blocks
        self._waiting = 0  # size of the blocks of the current tensor
        self._names: set[bytes] = set()
        self._previous = b""
        self._decoded = 0
        self._version = FIRST_VERSION  # first version that decodes all tensors so far

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: NDArray[np.uint8]) -> None:
        """Encode a tensor. data: (bytes,) uint8, little-endian.

        Raises:
            FormatError: if the name is repeated, or dtype, shape and data do not match.
        """
        encoded = encode_name(name)
        if encoded in self._names:
            raise FormatError(f"two tensors have the name {name!r}")
        tensor = Tensor(name, dtype, tuple(shape))
        self._waiting = 0
        header, version = encode_elements(tensor, data, self._keep, self._threads)
        self._version = max(self._version, version)
        entry = write_entry(tensor, self._previous, encoded)
        self._heads.append((entry + write_varint(len(header) + self._waiting) + header, self._waiting))
        self._names.add(encoded)
        self._previous = encoded
        self._decoded += tensor.num_bytes + len(encoded)

    @property
    def size(self) -> int:
        """Size in bytes of the blob with the tensors so far."""
        return self._unpadded + padding_of(self._decoded, self._unpadded)

    def pieces(self) -> Iterator[bytes]:
        """The blob in pieces. Can be used once: blocks in memory are released."""
        padding = self.size - self._unpadded
        yield self._start
        if self._spool is not None:
            self._spool.seek(0)
        for head, waiting in self._heads:
            yield head
            while waiting:
                block = self._spool.read(min(waiting, CHUNK)) if self._spool is not None else self._blocks.popleft()
                waiting -= len(block)
                yield block
        yield bytes(padding)

    def to_array(self) -> NDArray[np.uint8]:
        """The blob, (bytes,) uint8. Can be used once, like `pieces`."""
        blob, at = np.empty(self.size, np.uint8), 0
        for piece in self.pieces():
            blob[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
        return blob

    @property
    def _start(self) -> bytes:
        return bytes([self._version]) + write_varint(len(self._heads))

    @property
    def _unpadded(self) -> int:
        return len(self._start) + sum(len(head) + waiting for head, waiting in self._heads)

    def _keep(self, block: bytes) -> None:
        self._waiting += len(block)
        if self._spool is None:
            self._blocks.append(block)
        else:
            self._spool.write(block)
