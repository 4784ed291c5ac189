"""Tensor entries of a blob: name, dtype, shape, and location of the body."""

from __future__ import annotations

from makeweight_huffman.codec.bits import FormatError, Source, read_varint, write_varint
from makeweight_huffman.codec.plan import FIRST_VERSION, VERSION
from makeweight_huffman.codec.tensor import DTYPES, MAX_RANK, Located, Tensor

MANY_DIMENSIONS = 7  # from this rank on, a varint with the rank follows the dtype byte
MAX_SHARED = 127  # most bytes of a name shared with the previous one; bounds the size of all names by that of the blob
CHUNK = 1 << 20
EXPANSION, ALLOWANCE = 4096, 1 << 16  # limit on the decoded size: EXPANSION * len(blob) + ALLOWANCE bytes


def encode_name(name: str) -> bytes:
    """The name in UTF-8. Raises FormatError for lone surrogates."""
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"the name {name!r} cannot be written in UTF-8") from error


def write_entry(tensor: Tensor, previous: bytes, name: bytes) -> bytes:
    """Entry of a tensor up to its shape; the name is coded against the previous one."""
    shared = 0
    while shared < min(len(name), len(previous), MAX_SHARED) and name[shared] == previous[shared]:
        shared += 1
    rank = len(tensor.shape)
    written = write_varint(shared) + write_varint(len(name) - shared) + name[shared:]
    written += bytes([DTYPES.index(tensor.dtype) | min(rank, MANY_DIMENSIONS) << 5])
    if rank >= MANY_DIMENSIONS:
        written += write_varint(rank)
    return written + b"".join(map(write_varint, tensor.shape))


def padding_of(decoded: int, size: int) -> int:
    """Number of zero bytes to append to a blob of `size` bytes, so that `decoded` bytes are within the limit."""
    return max(0, -((ALLOWANCE - decoded) // EXPANSION) - size)


def locate_all(blob: Source, limit: int | None = None) -> list[Located]:
    """Locate all tensors of a blob.

    Raises:
        FormatError: if the blob is damaged, or exceeds `limit` (decoded bytes) or the format's own limit.
    """
    if not len(blob) or not FIRST_VERSION <= blob[0] <= VERSION:
        version = blob[0] if len(blob) else "none"
        raise FormatError(f"the blob has version {version}, expected {FIRST_VERSION} to {VERSION}")
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
            raise FormatError(f"the blob is truncated within tensor {tensor.name!r}")
        decoded += tensor.num_bytes + len(name)
        if decoded > allowed:
            raise FormatError(f"the decoded tensors exceed the limit of {allowed} bytes")
        if name in names:
            raise FormatError(f"two tensors have the name {tensor.name!r}")
        names.add(name)
        located.append(Located(tensor, at, at + size, blob[0]))
        at += size
    if len(blob) - at != padding_of(decoded, at) or any(
        bytes(blob[begin : begin + CHUNK]).strip(b"\0") for begin in range(at, len(blob), CHUNK)
    ):
        raise FormatError(f"wrong padding: {len(blob) - at} bytes after the last tensor")
    return located


def _read_entry(blob: Source, at: int, previous: bytes) -> tuple[Tensor, bytes, int]:
    """Read the entry at byte `at`: the tensor, its encoded name, and the index of the byte after the entry."""
    shared, at = read_varint(blob, at)
    added, at = read_varint(blob, at)
    if shared > min(len(previous), MAX_SHARED):
        raise FormatError(f"a name shares {shared} bytes with the previous one, more than it has or {MAX_SHARED}")
    if added >= len(blob) - at:
        raise FormatError("the blob is truncated within a name")
    name = previous[:shared] + bytes(blob[at : at + added])
    at += added
    number, rank = blob[at] & 31, blob[at] >> 5
    at += 1
    if rank == MANY_DIMENSIONS:
        rank, at = read_varint(blob, at)
        if not MANY_DIMENSIONS <= rank <= MAX_RANK:
            raise FormatError(f"a tensor has {rank} dimensions, expected {MANY_DIMENSIONS} to {MAX_RANK} in this form")
    if number >= len(DTYPES):
        raise FormatError(f"unknown dtype number {number}")
    shape = []
    for _ in range(rank):
        extent, at = read_varint(blob, at)
        shape.append(extent)
    try:
        tensor = Tensor(name.decode(), DTYPES[number], tuple(shape))
    except UnicodeDecodeError as error:
        raise FormatError("the name of a tensor is not UTF-8") from error
    tensor.check()
    return tensor, name, at
