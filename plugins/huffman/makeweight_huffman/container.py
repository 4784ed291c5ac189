"""Several tensors in one blob; see FORMAT.md. Nothing in a blob is trusted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.bits import FormatError, read_varint, write_varint
from makeweight_huffman.coder import readonly
from makeweight_huffman.plan import Plan
from makeweight_huffman.tensor import DTYPES, LAYOUTS, MAX_RANK, Tensor, decode_elements, encode_elements, size_of

VERSION = 1
MANY_DIMENSIONS = 7  # from here on, their number follows the byte that holds it and the dtype
MAX_SHARED = 127  # bytes that a name takes from the one before; so names take little more than the blob
EXPANSION, ALLOWANCE = 4096, 1 << 16  # a blob decodes to at most its size times the one, and the other

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


@dataclass(frozen=True)
class Located:
    """A tensor, and where its body lies in the blob."""

    tensor: Tensor
    begin: int
    end: int


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
    parts = _encode_parts([(name, dtype, shape, data)], threads)
    blob = np.empty(size_of(parts), np.uint8)
    end = blob.size
    while parts:
        part = parts.pop()
        blob[end - len(part) : end] = np.frombuffer(part, np.uint8)
        end -= len(part)
    return blob


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
    for located in _locate_all(source, limit):
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
    located = _locate_all(source, None)
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
    for located in _locate_all(source, limit):
        tensor, size = located.tensor, located.end - located.begin
        representation = "empty"
        if tensor.num_words:
            body = source[located.begin : located.end].data
            representation = Plan.read(body, LAYOUTS[tensor.dtype].word)[0].representation
        descriptions.append(
            Description(tensor.name, tensor.dtype, tensor.shape, representation, size, tensor.num_bytes)
        )
    return descriptions


def _encode_parts(tensors: Iterable[Entry], threads: int) -> list[bytes]:
    """The blob in parts: of every tensor its entry and its body; at last the padding."""
    parts: list[bytes] = []
    names: set[bytes] = set()
    previous, decoded = b"", 0
    for name, dtype, shape, data in tensors:
        tensor = Tensor(name, dtype, tuple(shape))
        body = encode_elements(tensor, data, threads)
        encoded_name = _encode_name(name)
        if encoded_name in names:
            raise FormatError(f"there are two tensors with the name {name!r}")
        parts += [_write_entry(tensor, previous, encoded_name) + write_varint(size_of(body)), *body]
        names.add(encoded_name)
        previous = encoded_name
        decoded += tensor.num_bytes + len(encoded_name)
    parts.insert(0, bytes([VERSION]) + write_varint(len(names)))
    return [*parts, bytes(_padding(decoded, size_of(parts)))]


def _encode_name(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"the name {name!r} cannot be written in UTF-8") from error


def _write_entry(tensor: Tensor, previous: bytes, name: bytes) -> bytes:
    shared = 0
    while shared < min(len(name), len(previous), MAX_SHARED) and name[shared] == previous[shared]:
        shared += 1
    rank = len(tensor.shape)
    written = write_varint(shared) + write_varint(len(name) - shared) + name[shared:]
    written += bytes([DTYPES.index(tensor.dtype) | min(rank, MANY_DIMENSIONS) << 5])
    if rank >= MANY_DIMENSIONS:
        written += write_varint(rank)
    return written + b"".join(map(write_varint, tensor.shape))


def _padding(decoded: int, size: int) -> int:
    """The zeros at the end that keep a blob of `size` bytes within the limit on what it decodes to."""
    return max(0, -((ALLOWANCE - decoded) // EXPANSION) - size)


def _as_array(blob: Blob) -> NDArray[np.uint8]:
    """The blob as a read-only array (bytes,)."""
    return readonly(np.frombuffer(blob, np.uint8))


def _locate_all(source: NDArray[np.uint8], limit: int | None) -> list[Located]:
    """All entries of a blob, their sizes checked against the limits."""
    blob = source.data
    if not len(blob) or blob[0] != VERSION:
        raise FormatError(f"the blob is of version {blob[0] if len(blob) else 'none'}, not {VERSION}")
    count, at = read_varint(blob, 1)
    allowed = EXPANSION * len(blob) + ALLOWANCE
    allowed = allowed if limit is None else min(allowed, limit)
    located: list[Located] = []
    names: set[bytes] = set()
    decoded, name = 0, b""
    for _ in range(count):
        tensor, name, at = _read_entry(blob, at, name)
        size, at = read_varint(blob, at)
        if size > len(blob) - at:
            raise FormatError(f"the blob ends in the middle of tensor {tensor.name!r}")
        decoded += tensor.num_bytes + len(name)
        if decoded > allowed:
            raise FormatError(f"the tensors take more than the {allowed} bytes allowed")
        if name in names:
            raise FormatError(f"there are two tensors with the name {tensor.name!r}")
        names.add(name)
        located.append(Located(tensor, at, at + size))
        at += size
    if len(blob) - at != _padding(decoded, at) or np.any(source[at:]):
        raise FormatError(f"{len(blob) - at} bytes after the last tensor are not the padding that belongs there")
    return located


def _read_entry(blob: memoryview, at: int, previous: bytes) -> tuple[Tensor, bytes, int]:
    """A tensor's entry at byte `at`: the tensor, its name, and the byte after the entry."""
    shared, at = read_varint(blob, at)
    added, at = read_varint(blob, at)
    if shared > min(len(previous), MAX_SHARED):
        raise FormatError(f"a name shares {shared} bytes with the one before, more than it has or than {MAX_SHARED}")
    if added >= len(blob) - at:
        raise FormatError("the blob ends in the middle of a name")
    name = previous[:shared] + bytes(blob[at : at + added])
    at += added
    number, rank = blob[at] & 31, blob[at] >> 5
    at += 1
    if rank == MANY_DIMENSIONS:
        rank, at = read_varint(blob, at)
        if not MANY_DIMENSIONS <= rank <= MAX_RANK:
            raise FormatError(f"a tensor has {rank} dimensions where {MANY_DIMENSIONS} to {MAX_RANK} may be")
    if number >= len(DTYPES):
        raise FormatError(f"dtype {number} is unknown")
    shape = []
    for _ in range(rank):
        extent, at = read_varint(blob, at)
        shape.append(extent)
    try:
        tensor = Tensor(name.decode(), DTYPES[number], tuple(shape))
    except UnicodeDecodeError as error:
        raise FormatError("a tensor's name is not UTF-8") from error
    tensor.check()
    return tensor, name, at
