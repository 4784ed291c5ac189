"""Encode tensors to a blob and back; see FORMAT.md. A blob is untrusted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec.bits import FormatError, Source
from makeweight_huffman.codec.entries import locate_all
from makeweight_huffman.codec.tensor import decode_elements, read_plan
from makeweight_huffman.codec.writer import BlobWriter

Entry = tuple[str, str, tuple[int, ...], NDArray[np.uint8]]  # name, dtype, shape, little-endian bytes
Memory = bytes | bytearray | memoryview | np.ndarray
Blob = Memory | Source


@dataclass(frozen=True)
class Description:
    """Summary of a coded tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    representation: str
    coded_bytes: int  # of the body, without name and shape
    decoded_bytes: int


def encode(tensors: Iterable[Entry], threads: int = 1) -> NDArray[np.uint8]:
    """Encode tensors as one blob, (bytes,), in their order.

    Raises:
        FormatError: if a name is repeated, or a tensor's dtype, shape and data do not match.
    """
    writer = BlobWriter(threads=threads)
    for tensor in tensors:
        writer.add(*tensor)
    return writer.to_array()


def decode(blob: Blob, limit: int | None = None, threads: int = 1) -> list[Entry]:
    """Inverse of `encode`, bit for bit.

    Args:
        blob: the blob in memory, or a source of its bytes.
        limit: largest decoded size of all tensors and names, in bytes. It is checked before memory is allocated.
        threads: number of threads that decode the blocks of large tensors.

    Raises:
        FormatError: if the blob is damaged, or exceeds `limit` or the format's own limit.
    """
    source = source_of(blob)
    entries = []
    for located in locate_all(source, limit):
        data = np.empty(located.tensor.num_bytes, np.uint8)
        decode_elements(located, source, data, threads)
        entries.append((located.tensor.name, located.tensor.dtype, located.tensor.shape, data))
    return entries


def decode_tensor(blob: Blob, out: NDArray[np.uint8], threads: int = 1) -> None:
    """Decode a blob of one tensor into `out` (bytes,) uint8, which must be contiguous, writable and of its size.

    Raises:
        FormatError: as `decode`; also if the blob does not hold exactly one tensor, or `out` is unsuitable.
    """
    source = source_of(blob)
    located = locate_all(source)
    if len(located) != 1:
        raise FormatError(f"the blob holds {len(located)} tensors, expected one")
    if out.dtype != np.uint8 or out.shape != (located[0].tensor.num_bytes,):
        raise FormatError(f"the buffer is {out.dtype} {out.shape}, expected uint8 ({located[0].tensor.num_bytes},)")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise FormatError("the buffer is not contiguous and writable")
    decode_elements(located[0], source, out, threads)


def describe(blob: Blob, limit: int | None = None) -> list[Description]:
    """Describe the tensors of a blob by their headers, without decoding their elements.

    Raises:
        FormatError: if a header is damaged, or exceeds `limit` or the format's own limit.
    """
    source = source_of(blob)
    descriptions = []
    for located in locate_all(source, limit):
        tensor, size = located.tensor, located.end - located.begin
        representation = "empty"
        if tensor.num_words:
            representation = read_plan(located, source)[0].representation
        descriptions.append(
            Description(tensor.name, tensor.dtype, tensor.shape, representation, size, tensor.num_bytes)
        )
    return descriptions


def source_of(blob: Blob) -> Source:
    """The blob as a source of bytes."""
    return np.frombuffer(blob, np.uint8).data.toreadonly() if isinstance(blob, Memory) else blob
