"""The run directory: chosen, locked against other runs, cleared of what killed ones left, and what it keeps said."""

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
"""what is written beside the model"""


def run_directory(options: Options, name: str) -> Path:
    """The run directory; one that holds a run already is refused unless it is to be resumed."""
    if options.resume and options.out is None:
        raise UsageError("--resume: name the run to go on with, --out runs/…")
    out = Path(options.out or f"runs/{name}-{strftime('%Y%m%d-%H%M%S')}")
    if is_first() and not options.resume:  # the other processes may come when it has begun to write
        check_empty(out)
    above = next(parent for parent in (out.absolute(), *out.absolute().parents) if os.path.lexists(parent))
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UsageError(f"--out {out}: expected a directory that can be written, {above} is none")
    return out


def is_first() -> bool:
    """Whether this is the process of a run that writes."""
    return int(os.environ.get("RANK", 0)) == 0


def check_empty(out: Path) -> None:
    """Raise UsageError where there is anything but the lock of a run."""
    if out.exists() and (not out.is_dir() or any(path.name != LOCK for path in out.iterdir())):
        raise UsageError(f"--out {out}: there is something already: go on with --resume, or name another directory")


@contextmanager
def taken(out: Path, options: Options) -> Iterator[None]:
    """The run directory, made, this run's alone, and without what killed runs left; on the process that writes.

    Raises UsageError where another run is going on there, or has been since `run_directory` looked, and MakeweightError
    where a link, a device or the like has the name of a file to write.
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
    """A lock that ends with this process: `lockf` holds it for the process alone, `flock` also for forked workers."""
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
    """A locked descriptor of the file; None where the run that had it has just ended and removed the file."""
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
        raise UsageError(f"{where}: a run is going on there: wait for its end, or name another directory") from error
    except OSError:
        return descriptor  # a file system without locks
    os.close(descriptor)
    return None


@contextmanager
def saying_what_is_kept(out: Path) -> Iterator[None]:
    """Add to the error of a file that cannot be written, and to an interruption, what the run directory holds."""
    try:
        yield
    except (UnwritableError, Stopped) as error:
        kept = [name for name in ("model.safetensors", "summary.json") if (out / name).is_file()]
        names = [path.name[5:14] for path in (out / "checkpoints").glob("step-*")]
        if steps := [int(name) for name in names if name.isdecimal()]:
            kept.append(f"the checkpoint of step {max(steps)}")
        if kept:
            error.add_note(f"{', '.join(kept)} {'is' if len(kept) == 1 else 'are'} kept, --resume goes on from there")
        raise
