"""Safetensors files: the header, checked and written, and data written in pieces.

Nothing here needs more memory than one tensor takes, however large the file is.
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
"""bytes of header that safetensors itself accepts at most"""


RANK_LIMIT = 64
"""dimensions of a tensor, as many as torch allows"""


MOST_TENSORS, LONGEST_NAME = 1 << 17, 1 << 10
"""tensors of a file, and characters of a name, that are read"""


def header_bytes(file: FileBytes) -> bytes:
    """The header of a safetensors file, its length checked against the file before it is read."""
    length = int.from_bytes(file[:8], "little")
    if len(file) < 9 or length > HEADER_LIMIT or bytes(file[8:9]) != b"{":
        raise MakeweightError(f"{file.path} is not a safetensors file")
    if 8 + length > len(file):
        raise MakeweightError(f"{file.path} is cut short: its header has {length} bytes, the file {len(file)}")
    return bytes(file[8 : 8 + length])


def read_header(file: FileBytes) -> tuple[list[Stored], dict[str, str]]:
    """The tensors of a safetensors file in the order of their bytes, and its metadata.

    Raises MakeweightError where the header is not as safetensors has it, or does not say what each byte belongs to.
    """
    text = header_bytes(file)
    try:
        header = parse_json(text)
        metadata = header.pop("__metadata__", None) or {}
        ranges = {name: (*each["data_offsets"], each["dtype"], each["shape"]) for name, each in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MakeweightError(f"{file.path} is damaged: its header is not that of a safetensors file") from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MakeweightError(f"{file.path} is damaged: its metadata is no table of text")
    try:
        check_names(len(ranges), ranges)
    except MakeweightError as error:
        raise MakeweightError(f"{file.path}: {error}") from error
    for name, facts in ranges.items():
        if problem := _problem(*facts) if len(facts) == 4 else "has offsets that are no pair":
            raise MakeweightError(f"{file.path} is damaged: {name!r} {problem}")
    stored, at, start = [], 0, 8 + len(text)
    for name, (begin, end, dtype, shape) in sorted(ranges.items(), key=lambda item: item[1][:2]):
        if begin != at or start + end > len(file):
            raise MakeweightError(f"{file.path} is damaged: {name!r} lies at bytes {begin} to {end}, out of place")
        stored.append(Stored(name, dtype, tuple(shape), file.part(start + begin, start + end)))
        at = end
    if start + at != len(file):
        raise MakeweightError(f"{file.path} is damaged: {len(file) - start - at} bytes belong to no tensor")
    return stored, metadata


def check_names(count: int, names: Iterable[str] = ()) -> None:
    """Raise MakeweightError for more tensors than are read from a file, or for a name that is too long."""
    if count > MOST_TENSORS:
        raise MakeweightError(f"it holds {count:,} tensors: expected at most {MOST_TENSORS:,}")
    for name in names:
        if len(name) > LONGEST_NAME:
            raise MakeweightError(f"a tensor's name has {len(name):,} characters: expected at most {LONGEST_NAME:,}")


def _problem(begin: Any, end: Any, dtype: Any, shape: Any) -> str:
    """What is wrong with an entry of a header; nothing where it is right."""
    if not isinstance(shape, list) or len(shape) > RANK_LIMIT:
        return f"has a shape that is no list of at most {RANK_LIMIT} numbers"
    if any(type(number) is not int or not 0 <= number < 1 << 63 for number in (begin, end, *shape)):
        return "has a shape or offsets that are no counts"
    if math.prod(max(number, 1) for number in shape) >= 1 << 63:
        return f"has the shape {shape}, which is too large"
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"is of dtype {dtype!r}, not one of {', '.join(BITS)}"
    if 8 * (end - begin) != BITS[dtype] * math.prod(shape):
        return f"has {end - begin} bytes, which are no {dtype} of shape {shape}"
    return ""


def header_size(tensors: Iterable[Layout], metadata: Mapping[str, str]) -> int:
    """The bytes before the data of a safetensors file."""
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
    """Write a safetensors file whose data come in pieces of any length, the tensors' one after the other.

    Its bytes are those of safetensors' own writer for tensors in this order.
    """
    tensors = list(tensors)
    header, expected = _header(tensors, metadata), sum(size for *_, size in tensors)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        written = sum(file.write(piece) for piece in pieces)
    if written != expected:
        raise AssertionError(f"{written} bytes came for tensors of {expected}")
