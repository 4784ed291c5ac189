"""Reads and writes safetensors files with a validated header.

Memory use is bounded by the header and the largest piece of data, independent of the size of the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import MakeweightError
from .file_bytes import FileBytes
from .tensor_bytes import BITS, Layout, Stored
from .untrusted import parse_json

HEADER_LIMIT = 100_000_000
"""maximum size of the header in bytes, as in the safetensors library"""


RANK_LIMIT = 64
"""maximum number of dimensions of a tensor, as in torch"""


MOST_TENSORS, LONGEST_NAME = 1 << 17, 1 << 10
"""maximum number of tensors in a file, and of characters in a name"""


def header_bytes(file: FileBytes) -> bytes:
    """The header of a safetensors file. Its length is checked before it is read. Raises MakeweightError."""
    length = int.from_bytes(file[:8], "little")
    if len(file) < 9 or length > HEADER_LIMIT or bytes(file[8:9]) != b"{":
        raise MakeweightError(f"{file.path} is not a safetensors file")
    if 8 + length > len(file):
        raise MakeweightError(f"{file.path} is truncated: its header has {length} bytes, the file {len(file)}")
    return bytes(file[8 : 8 + length])


def read_header(file: FileBytes) -> tuple[list[Stored], dict[str, str]]:
    """The tensors of a safetensors file in the order of their offsets, and its metadata.

    Raises MakeweightError if the header is invalid, or if the tensors do not cover the data without gaps and overlaps.
    """
    text = header_bytes(file)
    try:
        header = parse_json(text)
        metadata = header.pop("__metadata__", None) or {}
        ranges = {name: (*each["data_offsets"], each["dtype"], each["shape"]) for name, each in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MakeweightError(f"{file.path} is damaged: its header is not a safetensors header") from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MakeweightError(f"{file.path} is damaged: its metadata is not a table of strings")
    try:
        check_names(len(ranges), ranges)
    except MakeweightError as error:
        raise MakeweightError(f"{file.path}: {error}") from error
    for name, facts in ranges.items():
        if problem := _problem(*facts) if len(facts) == 4 else "has offsets that are not a pair":
            raise MakeweightError(f"{file.path} is damaged: {name!r} {problem}")
    stored, at, start = [], 0, 8 + len(text)
    for name, (begin, end, dtype, shape) in sorted(ranges.items(), key=lambda item: item[1][:2]):
        if begin != at or start + end > len(file):
            raise MakeweightError(f"{file.path} is damaged: {name!r} has wrong offsets, {begin} to {end}")
        stored.append(Stored(name, dtype, tuple(shape), file.part(start + begin, start + end)))
        at = end
    if start + at != len(file):
        raise MakeweightError(f"{file.path} is damaged: {len(file) - start - at} bytes belong to no tensor")
    return stored, metadata


def check_names(count: int, names: Iterable[str] = ()) -> None:
    """Raise MakeweightError if a file has too many tensors or a name is too long."""
    if count > MOST_TENSORS:
        raise MakeweightError(f"it holds {count:,} tensors: expected at most {MOST_TENSORS:,}")
    for name in names:
        if len(name) > LONGEST_NAME:
            raise MakeweightError(f"a tensor's name has {len(name):,} characters: expected at most {LONGEST_NAME:,}")


def _problem(begin: Any, end: Any, dtype: Any, shape: Any) -> str:
    """A description of the error in an entry of a header, or an empty string if the entry is valid."""
    if not isinstance(shape, list) or len(shape) > RANK_LIMIT:
        return f"has a shape that is not a list of at most {RANK_LIMIT} numbers"
    if any(type(number) is not int or not 0 <= number < 1 << 63 for number in (begin, end, *shape)):
        return "has a shape or offsets that are not integers from 0 to 2^63 - 1"
    if math.prod(max(number, 1) for number in shape) >= 1 << 63:
        return f"has the shape {shape}, which is too large"
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"has dtype {dtype!r}: expected one of {', '.join(BITS)}"
    if 8 * (end - begin) != BITS[dtype] * math.prod(shape):
        return f"has {end - begin} bytes, which do not fit {dtype} of shape {shape}"
    return ""


def header_size(tensors: Iterable[Layout], metadata: Mapping[str, str]) -> int:
    """The number of bytes before the data of a safetensors file: the length field and the header."""
    return 8 + len(_header(tensors, metadata))


def _header(tensors: Iterable[Layout], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def write_in_pieces(path: Path, tensors: Iterable[Layout], metadata: Mapping[str, str], pieces: Iterable[Any]) -> None:
    """Write a safetensors file. `pieces` are byte buffers of any length that together form the data of all tensors.

    The file equals that of the safetensors library for tensors in this order. Raises AssertionError if the total length
    of the pieces is wrong.
    """
    tensors = list(tensors)
    header, expected = _header(tensors, metadata), sum(size for *_, size in tensors)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        written = sum(file.write(piece) for piece in pieces)
    if written != expected:
        raise AssertionError(f"{written} bytes were written for tensors of {expected} bytes")
