"""What a blob says of its tensors besides their elements: names, dtypes, shapes, and where their bodies lie."""

from __future__ import annotations

from makeweight_huffman.codec.bits import FormatError, Source, read_varint, write_varint
from makeweight_huffman.codec.plan import FIRST_VERSION, VERSION
from makeweight_huffman.codec.tensor import DTYPES, MAX_RANK, Located, Tensor

MANY_DIMENSIONS = 7  # from here on, their number follows the byte that holds it and the dtype
MAX_SHARED = 127  # bytes that a name takes from the one before; so names take little more than the blob
CHUNK = 1 << 20
EXPANSION, ALLOWANCE = 4096, 1 << 16  # a blob decodes to at most its size times the one, and the other


def encode_name(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"the name {name!r} cannot be written in UTF-8") from error


def write_entry(tensor: Tensor, previous: bytes, name: bytes) -> bytes:
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
    """The zeros at the end that keep a blob of `size` bytes within the limit on what it decodes to."""
    return max(0, -((ALLOWANCE - decoded) // EXPANSION) - size)


def locate_all(blob: Source, limit: int | None = None) -> list[Located]:
    """All entries of a blob, their sizes checked against the limits."""
    if not len(blob) or not FIRST_VERSION <= blob[0] <= VERSION:
        version = blob[0] if len(blob) else "none"
        raise FormatError(f"the blob is of version {version}, not {FIRST_VERSION} to {VERSION}")
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
        located.append(Located(tensor, at, at + size, blob[0]))
        at += size
    if len(blob) - at != padding_of(decoded, at) or any(
        bytes(blob[begin : begin + CHUNK]).strip(b"\0") for begin in range(at, len(blob), CHUNK)
    ):
        raise FormatError(f"{len(blob) - at} bytes after the last tensor are not the padding that belongs there")
    return located


def _read_entry(blob: Source, at: int, previous: bytes) -> tuple[Tensor, bytes, int]:
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
