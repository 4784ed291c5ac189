"""Files that are whole or not there."""

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
"""names that `aside_name` gives"""


class UnwritableError(MakeweightError):
    """A file cannot be written: the disk is full, the folder read-only, a device has its name, …"""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"{path} cannot be written: {getattr(reason, 'strerror', None) or reason}")


@contextmanager
def written_aside(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A path beside `path` to write to; it is synced and renamed to `path` at the end, and removed on an error.

    The file is there already, empty, with `mode` less the umask. Raises MakeweightError where it cannot be written.
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
    """A file without a name where `path` is to be, for what has to wait until it can be written; gone at the end.

    Raises MakeweightError where it cannot be written.
    """
    try:
        check_target(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent) as spool:
            yield cast(BinaryIO, spool)
    except OSError as error:
        raise UnwritableError(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, wholly or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as a line of JSON, or as a page with `indent`. Numbers that are not finite are null: JSON lacks them."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_target(path: Path) -> None:
    """Raise MakeweightError where `path` is there and is no regular file.

    A rename would replace /dev/null, or a link, by a file; writing to a pipe would wait for a reader.
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
    """A hidden name beside `path` that nobody can foresee."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove the files that killed processes were writing in this folder; nobody may be writing there now."""
    for path in folder.iterdir():
        if ASIDE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
