"""Chooses, checks and locks the run directory, and cleans up after killed runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import strftime
from typing import Any

from ..errors import UsageError
from ..files.writing import UnwritableError, check_target, remove_leftovers
from ..options import Options
from . import checkpoint
from .interrupt import Stopped

try:
    import fcntl as _fcntl

    fcntl: Any = _fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
FILES = ("config.yaml", "metrics.jsonl", "summary.json", "report.html")
"""files written in addition to the model"""


def run_directory(options: Options, name: str) -> Path:
    """The path of the run directory; `name` is part of the default. Creates nothing.

    Raises UsageError if the directory is not empty and the run is not resumed, or if it cannot be written.
    """
    if options.resume and options.out is None:
        raise UsageError("--resume: expected the run to continue, --out runs/…")
    out = Path(options.out or f"runs/{name}-{strftime('%Y%m%d-%H%M%S')}")
    if is_first() and not options.resume:  # the first process may write before the others check
        check_empty(out)
    above = next(parent for parent in (out.absolute(), *out.absolute().parents) if os.path.lexists(parent))
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UsageError(f"--out {out}: expected a writable directory, {above} is not one")
    return out


def is_first() -> bool:
    """Whether this process has rank 0. Only this process writes files."""
    return int(os.environ.get("RANK", 0)) == 0


def check_empty(out: Path) -> None:
    """Raise UsageError if the directory contains anything except a lock file."""
    if out.exists() and (not out.is_dir() or any(path.name != LOCK for path in out.iterdir())):
        raise UsageError(f"--out {out}: not empty: continue with --resume, or name another directory")


@contextmanager
def taken(out: Path, options: Options) -> Iterator[None]:
    """Create and lock the run directory inside the context, and remove leftovers of killed runs; on rank 0 only.

    Raises UsageError if another run uses the directory or has used it since `run_directory` was called. Raises
    MakeweightError if a file to write exists as a link, a device or another special file.
    """
    if not is_first():
        yield
        return
    with _locked(out):
        if not options.resume:
            check_empty(out)
        for name in (*FILES, *(f"model.{each}" for each in options.formats)):
            check_target(out / name)
        try:
            remove_leftovers(out)
        except OSError as error:
            raise UnwritableError(out, error) from error
        checkpoint.remove_leftovers(out / "checkpoints")
        yield


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock file. It uses `lockf`, as forked workers would inherit a `flock` and keep it after this process."""
    if fcntl is None:
        out.mkdir(parents=True, exist_ok=True)
        yield
        return
    path = out / LOCK
    check_target(path)
    try:
        out.mkdir(parents=True, exist_ok=True)
        while (descriptor := _try_lock(path)) is None:
            pass
    except OSError as error:
        raise UnwritableError(path, error) from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """A locked descriptor, or None if the previous owner has just removed the file. Raises UsageError if in use."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except FileNotFoundError:
        pass
    except (BlockingIOError, PermissionError) as error:
        os.close(descriptor)
        where = f"--out {path.parent}"
        raise UsageError(f"{where}: in use by another run: wait for its end, or name another directory") from error
    except OSError:
        return descriptor  # the file system does not support locks
    os.close(descriptor)
    return None


@contextmanager
def saying_what_is_kept(out: Path) -> Iterator[None]:
    """Add a note on the usable files of the run directory to a write error or an interruption."""
    try:
        yield
    except (UnwritableError, Stopped) as error:
        kept = [name for name in ("model.safetensors", "summary.json") if (out / name).is_file()]
        names = [path.name[5:14] for path in (out / "checkpoints").glob("step-*")]
        if steps := [int(name) for name in names if name.isdecimal()]:
            kept.append(f"the checkpoint of step {max(steps)}")
        if kept:
            error.add_note(f"{', '.join(kept)} {'is' if len(kept) == 1 else 'are'} kept: continue with --resume")
        raise
