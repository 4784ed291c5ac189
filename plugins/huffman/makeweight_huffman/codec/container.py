"""Several tensors in one blob; see FORMAT.md. Nothing in a blob is trusted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec.bits import FormatError, write_varint
from makeweight_huffman.codec.coder import readonly
from makeweight_huffman.codec.entries import VERSION, encode_name, locate_all, padding_of, write_entry
from makeweight_huffman.codec.plan import Plan
from makeweight_huffman.codec.tensor import LAYOUTS, Tensor, decode_elements, encode_elements

Entry = tuple[str, str, tuple[int, ...], NDArray[np.uint8]]  # name, dtype, shape, little-endian bytes
Blob = bytes | bytearray | memoryview | NDArray[np.uint8]


@dataclass(frozen=True)
class Description:
    """What `inspect` shows of a tensor in a blob."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    representation: str
    coded_bytes: int  # of the body: neither name nor shape
    decoded_bytes: int


def encode(tensors: Iterable[Entry], threads: int = 1) -> bytes:
    """A blob of all tensors, in their order.

    Raises:
        FormatError: when a name comes twice or a tensor's dtype, shape and data do not go together.
    """
    return b"".join(_encode_parts(tensors, threads))


def encode_tensor(
    name: str, dtype: str, shape: tuple[int, ...], data: NDArray[np.uint8], threads: int = 1
) -> NDArray[np.uint8]:
    """A blob of one tensor, (bytes,), made without a second copy of it.

    Raises:
        FormatError: as encode does.
    """
    before, blocks, padding = _encode_parts([(name, dtype, shape, data)], threads)
    assert isinstance(blocks, bytearray), "the second part is the blocks"
    blocks[:0] = before
    blocks += padding
    return np.frombuffer(blocks, np.uint8)


def decode(blob: Blob, limit: int | None = None, threads: int = 1) -> list[Entry]:
    """All tensors of a blob, bit for bit what was encoded.

    Args:
        blob: what encode or encode_tensor returned.
        limit: bytes that the tensors may take; a blob that promises more is refused before memory is taken.
        threads: that decode blocks of large tensors.

    Raises:
        FormatError: when the blob is damaged, or promises more than `limit` or the format's own limit.
    """
    source = _as_array(blob)
    entries = []
    for located in locate_all(source, limit):
        data = np.empty(located.tensor.num_bytes, np.uint8)
        decode_elements(located.tensor, source, located.begin, located.end, data, threads)
        entries.append((located.tensor.name, located.tensor.dtype, located.tensor.shape, data))
    return entries


def decode_tensor(blob: Blob, out: NDArray[np.uint8], threads: int = 1) -> None:
    """Decode a blob of one tensor into `out` (bytes,), which must be contiguous, writable and of its size.

    Raises:
        FormatError: as decode does; also when there is not one tensor or `out` is not of its size.
    """
    source = _as_array(blob)
    located = locate_all(source, None)
    if len(located) != 1:
        raise FormatError(f"the blob holds {len(located)} tensors, not one")
    if out.dtype != np.uint8 or out.shape != (located[0].tensor.num_bytes,):
        raise FormatError(f"the buffer has {out.size} items of {out.dtype}, not {located[0].tensor.num_bytes} of uint8")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise FormatError("the buffer is not contiguous, or cannot be written to")
    decode_elements(located[0].tensor, source, located[0].begin, located[0].end, out, threads)


def describe(blob: Blob, limit: int | None = None) -> list[Description]:
    """What a blob's headers say of its tensors; their elements are not decoded.

    Raises:
        FormatError: when a header is damaged or promises too much.
    """
    source = _as_array(blob)
    descriptions = []
    for located in locate_all(source, limit):
        tensor, size = located.tensor, located.end - located.begin
        representation = "empty"
        if tensor.num_words:
            body = source[located.begin : located.end].data
            representation = Plan.read(body, LAYOUTS[tensor.dtype].word)[0].representation
        descriptions.append(
            Description(tensor.name, tensor.dtype, tensor.shape, representation, size, tensor.num_bytes)
        )
    return descriptions


def _encode_parts(tensors: Iterable[Entry], threads: int) -> list[bytes | bytearray]:
    """The blob in parts: of every tensor what comes before its blocks, and these; at last the padding."""
    parts: list[bytes | bytearray] = []
    names: set[bytes] = set()
    previous, decoded = b"", 0
    for name, dtype, shape, data in tensors:
        tensor = Tensor(name, dtype, tuple(shape))
        header, blocks = encode_elements(tensor, data, threads)
        encoded_name = encode_name(name)
        if encoded_name in names:
            raise FormatError(f"there are two tensors with the name {name!r}")
        entry = write_entry(tensor, previous, encoded_name) + write_varint(len(header) + len(blocks))
        parts += [entry + header, blocks]
        names.add(encoded_name)
        previous = encoded_name
        decoded += tensor.num_bytes + len(encoded_name)
    start = bytes([VERSION]) + write_varint(len(names))
    parts[:1] = [start + parts[0]] if parts else [start]
    return [*parts, bytes(padding_of(decoded, sum(map(len, parts))))]


def _as_array(blob: Blob) -> NDArray[np.uint8]:
    """The blob as a read-only array (bytes,)."""
    return readonly(np.frombuffer(blob, np.uint8))
