"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

from safetensors import SafetensorError

from .errors import MakeweightError


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it is synced and renamed to `path` at the end, and removed on an error.

    Raises MakeweightError where it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def spool_beside(path: Path) -> Iterator[BinaryIO]:
    """A file without a name where `path` is to be, for what has to wait until it can be written; gone at the end.

    Raises MakeweightError where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent) as spool:
            yield cast(BinaryIO, spool)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, wholly or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: Exception) -> MakeweightError:
    return MakeweightError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}")
