"""Safetensors files in parts: bytes read when they are asked for, a header that is checked, a file written in pieces.

What is here takes the memory of one tensor or less, however large the file is.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, overload

import numpy as np
import torch

from .errors import MakeweightError
from .untrusted import parse_json

HEADER_LIMIT = 100_000_000
"""bytes of header that safetensors itself accepts at most"""
RANK_LIMIT = 64
"""dimensions of a tensor, as many as torch allows"""
MOST_TENSORS, LONGEST_NAME = 1 << 17, 1 << 10
"""tensors of a file, and characters of a name, that are read"""

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
BITS = {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""of an element, by safetensors' names; torch lacks some of them"""


class FileBytes:
    """The bytes of a file, read when they are asked for: `part[i]` and `part[i:j]` as of bytes.

    The file stays open as long as this or a part of it lives. Raises MakeweightError where it has become shorter.
    """

    PAGE = 1 << 16  # bytes read at once where fewer are asked for

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            self._begin, self._end = 0, os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise MakeweightError(f"{path} cannot be read: {error.strerror}") from error
        self._lock = Lock()  # preadv, which needs none, is not on every system
        self._page = 0, memoryview(b"")  # where it begins, and its bytes
        self._whole: FileBytes | None = None

    def __len__(self) -> int:
        return self._end - self._begin

    @overload
    def __getitem__(self, where: int) -> int: ...
    @overload
    def __getitem__(self, where: slice) -> memoryview: ...
    def __getitem__(self, where: int | slice) -> int | memoryview:
        if isinstance(where, int):
            byte: int = self[where : where + 1][0]
            return byte
        begin, end, _ = where.indices(len(self))
        if end - begin > self.PAGE:
            return self.read(begin, end)
        first, page = self._page
        if not first <= begin <= end <= first + len(page):
            first, page = begin, self.read(begin, min(begin + self.PAGE, len(self)))
            self._page = first, page  # at once: threads may read at the same time
        return page[begin - first : end - first]

    def part(self, begin: int, end: int) -> FileBytes:
        """Bytes `begin` to `end` of these."""
        part = copy(self)
        part._begin, part._end = self._begin + begin, self._begin + end
        part._page, part._whole = (0, memoryview(b"")), self
        return part

    def read(self, begin: int = 0, end: int | None = None) -> memoryview:
        """These bytes in memory of their own, which may be written to."""
        size, at = (len(self) if end is None else end) - begin, 0
        try:
            buffer = memoryview(bytearray(size))
        except MemoryError as error:
            raise MakeweightError(f"{self.path}: there is no memory for {size:,} bytes of it") from error
        with self._lock:
            try:
                self._file.seek(self._begin + begin)
                while at < len(buffer) and (count := self._file.readinto(buffer[at:])):
                    at += count
            except OSError as error:
                raise MakeweightError(f"{self.path} cannot be read: {error.strerror}") from error
        if at < len(buffer):
            raise MakeweightError(f"{self.path} has become shorter while it was read")
        return buffer


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: what the header says of it, and its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: FileBytes

    def tensor(self) -> torch.Tensor:
        """The tensor, read. Raises MakeweightError for a dtype that torch has not."""
        if self.dtype not in DTYPES:
            raise MakeweightError(f"{self.bytes.path}: {self.name!r} is of dtype {self.dtype}, which torch has not")
        if not len(self.bytes):
            return torch.empty(self.shape, dtype=DTYPES[self.dtype])
        return torch.frombuffer(self.bytes.read(), dtype=DTYPES[self.dtype]).reshape(self.shape)


def header_bytes(file: FileBytes) -> bytes:
    """The header of a safetensors file, its length checked against the file before it is read."""
    length = int.from_bytes(file[:8], "little")
    if len(file) < 9 or length > HEADER_LIMIT or file[8:9] != b"{":
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


Layout = tuple[str, str, tuple[int, ...], int]
"""a tensor's name, dtype, shape and bytes"""


def layout_of(name: str, tensor: torch.Tensor) -> Layout:
    """What a header says of a tensor. Raises MakeweightError for a dtype that safetensors has not."""
    for dtype, each in DTYPES.items():
        if each == tensor.dtype:
            return name, dtype, tuple(tensor.shape), tensor.nbytes
    raise MakeweightError(f"{name!r} is of {tensor.dtype}, which a safetensors file cannot hold")


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's elements as safetensors has them: uint8 [bytes]."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: np.ndarray = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return array


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
