"""Writes files atomically: a file has its complete content or does not exist."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from safetensors import SafetensorError

from ..errors import MakeweightError

ASIDE = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
"""names that `aside_name` returns"""


class UnwritableError(MakeweightError):
    """A file cannot be written, for example because the disk is full or the folder is read-only."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"{path} cannot be written: {getattr(reason, 'strerror', None) or reason}")


@contextmanager
def written_aside(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary file next to `path`. On exit it is synced and renamed to `path`; on an error it is removed.

    The temporary file already exists and is empty; its permissions are `mode` minus the umask. Raises MakeweightError
    if the file cannot be written.
    """
    aside = aside_name(path)
    try:
        check_target(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield aside
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise UnwritableError(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def spool_beside(path: Path) -> Iterator[BinaryIO]:
    """Yield an anonymous temporary file in the folder of `path`, for data that is needed until `path` is written.

    It is removed on exit. Raises MakeweightError if it cannot be written.
    """
    try:
        check_target(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent) as spool:
            yield cast(BinaryIO, spool)
    except OSError as error:
        raise UnwritableError(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Raises MakeweightError if it cannot be written."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as a line of JSON, or as several lines with `indent`. NaN and infinities become null: JSON lacks them."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_target(path: Path) -> None:
    """Raise MakeweightError if `path` exists and is not a regular file.

    Renaming a file to `path` would replace a link or a device such as /dev/null; writing to a pipe would block.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFLNK: "link", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise UnwritableError(path, f"a {kind} has this name, expected a file or none")


def aside_name(path: Path) -> Path:
    """A hidden, unpredictable name in the folder of `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder. No other process may write to it."""
    for path in folder.iterdir():
        if ASIDE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()


def sync(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
