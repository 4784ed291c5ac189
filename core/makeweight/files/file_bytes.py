"""The bytes of a file, read on demand."""

from __future__ import annotations

import os
import weakref
from copy import copy
from pathlib import Path
from threading import Lock
from typing import overload

from ..errors import MakeweightError


class FileBytes:
    """The bytes of a file, or of a part of it, read on access. `part[i]` and `part[i:j]` work as for `bytes`.

    The file stays open as long as this object or one of its parts exists. Raises MakeweightError if the file cannot be
    read or has become shorter.
    """

    PAGE = 1 << 16  # minimum number of bytes per read

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            self._begin, self._end = 0, os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise MakeweightError(f"{path} cannot be read: {error.strerror}") from error
        self._lock = Lock()  # preadv would not need one, but is not available on every system
        self._page = 0, memoryview(b"")  # offset and content
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
            self._page = first, page  # one assignment, since other threads may read at the same time
        return page[begin - first : end - first]

    def part(self, begin: int, end: int) -> FileBytes:
        """The bytes from `begin` to `end`, as a part that shares the open file."""
        part = copy(self)
        part._begin, part._end = self._begin + begin, self._begin + end
        part._page, part._whole = (0, memoryview(b"")), self
        return part

    def read(self, begin: int = 0, end: int | None = None) -> memoryview:
        """A writable copy of the bytes from `begin` to `end`. Raises MakeweightError, also if memory is exhausted."""
        size, at = (len(self) if end is None else end) - begin, 0
        try:
            buffer = memoryview(bytearray(size))
        except MemoryError as error:
            raise MakeweightError(f"{self.path}: not enough memory for {size:,} bytes of it") from error
        with self._lock:
            try:
                self._file.seek(self._begin + begin)
                while at < len(buffer) and (count := self._file.readinto(buffer[at:])):
                    at += count
            except OSError as error:
                raise MakeweightError(f"{self.path} cannot be read: {error.strerror}") from error
        if at < len(buffer):
            raise MakeweightError(f"{self.path} became shorter while it was read")
        return buffer
