"""Several tensors in one blob; see FORMAT.md. Nothing in a blob is trusted."""

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
    """What `inspect` shows of a tensor in a blob."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    representation: str
    coded_bytes: int  # of the body: neither name nor shape
    decoded_bytes: int


def encode(tensors: Iterable[Entry], threads: int = 1) -> NDArray[np.uint8]:
    """A blob of all tensors, in their order: (bytes,).

    Raises:
        FormatError: when a name comes twice or a tensor's dtype, shape and data do not go together.
    """
    writer = BlobWriter(threads=threads)
    for tensor in tensors:
        writer.add(*tensor)
    return writer.to_array()


def decode(blob: Blob, limit: int | None = None, threads: int = 1) -> list[Entry]:
    """All tensors of a blob, bit for bit what was encoded.

    Args:
        blob: what encode returned, or a source of the same bytes.
        limit: bytes that the tensors may take; a blob that promises more is refused before memory is taken.
        threads: that decode blocks of large tensors.

    Raises:
        FormatError: when the blob is damaged, or promises more than `limit` or the format's own limit.
    """
    source = source_of(blob)
    entries = []
    for located in locate_all(source, limit):
        data = np.empty(located.tensor.num_bytes, np.uint8)
        decode_elements(located, source, data, threads)
        entries.append((located.tensor.name, located.tensor.dtype, located.tensor.shape, data))
    return entries


def decode_tensor(blob: Blob, out: NDArray[np.uint8], threads: int = 1) -> None:
    """Decode a blob of one tensor into `out` (bytes,), which must be contiguous, writable and of its size.

    Raises:
        FormatError: as decode does; also when there is not one tensor or `out` is not of its size.
    """
    source = source_of(blob)
    located = locate_all(source)
    if len(located) != 1:
        raise FormatError(f"the blob holds {len(located)} tensors, not one")
    if out.dtype != np.uint8 or out.shape != (located[0].tensor.num_bytes,):
        raise FormatError(f"the buffer has {out.size} items of {out.dtype}, not {located[0].tensor.num_bytes} of uint8")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise FormatError("the buffer is not contiguous, or cannot be written to")
    decode_elements(located[0], source, out, threads)


def describe(blob: Blob, limit: int | None = None) -> list[Description]:
    """What a blob's headers say of its tensors; their elements are not decoded.

    Raises:
        FormatError: when a header is damaged or promises too much.
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
    """A blob in memory as a source."""
    return np.frombuffer(blob, np.uint8).data.toreadonly() if isinstance(blob, Memory) else blob
