"""Decides which recipes may refer to code: those given with --recipe, and those that a run of this user wrote."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import MakeweightError, UsageError
from ..files.writing import written_aside
from ..options import PICKLES
from ..references import REFERENCE

NO_CODE = {("model",): ("timm:",), ("data",): ("imagefolder:",), ("weights",): ("torchvision:", "hf:")}
"""prefixes of values that look like a reference to code but are not one, by option"""
TORCHVISION = "torchvision:"
"""prefix of names that plugins look up in torchvision's list of models"""
MOST_VALUES = 100_000
"""maximum number of values that are searched; with aliases, a short file may have more"""
MOST_RECORDS = 1000
"""maximum number of run directories whose config.yaml is recorded as written by this user"""


def check(recipe: Mapping[str, Any], path: Path, given: Collection[str]) -> None:
    """Raise UsageError if a recipe that was not given with --recipe refers to code.

    Options in `given` (`model`, `kd.teacher`, `stages.0.kd.teacher`) are overridden on the command line and ignored. A
    recipe that a run of this user wrote is accepted.
    """
    found = next(code_in(recipe, given), None)
    if found and not is_own(path):
        raise UsageError(f"{path} refers to code, {found}: to trust it, use --recipe {path}")


def code_in(recipe: Mapping[str, Any], given: Collection[str] = ()) -> Iterator[str]:
    """Each reference `package.module:name` in a recipe, preceded by its option. Options of plugins are included."""
    overridden = {tuple(key.split(".")) for key in given}
    rest: list[tuple[tuple[str, ...], Any]] = [((), recipe)]
    values = 0
    while rest:
        path, value = rest.pop()
        if any(path[:depth] in overridden for depth in range(1, len(path) + 1)):
            continue
        if isinstance(value, str):
            yield from (f"{'.'.join(path)} {reference}" for reference in _references(path, value))
        elif isinstance(value, (Mapping, list, tuple)):
            if (values := values + len(value)) > MOST_VALUES:
                yield f"or may, in more than {MOST_VALUES:,} values"
                return
            inside = value.items() if isinstance(value, Mapping) else enumerate(value)
            rest += [((*path, str(key))[:4], each) for key, each in inside]  # the longest: stages, 0, plugin, option


def _references(path: tuple[str, ...], value: str) -> Iterator[str]:
    option = path[2:] if path[0] == "stages" else path
    if option in NO_CODE and value.startswith(NO_CODE[option]):
        return
    if option == ("weights",) and value.lower().endswith(PICKLES):
        yield f"{value} (a pickle)"
        return
    for match in REFERENCE.finditer(value):
        if not (len(option) > 1 and match[0].startswith(TORCHVISION)):
            yield match[0]


def remember(path: Path, text: str) -> None:
    """Record, in the user's state directory, that a run of this user writes `text` to its config.yaml.

    If the record cannot be written, resuming the run requires --recipe.
    """
    record = _record(path)
    if record is None:
        return
    with suppress(MakeweightError, OSError):
        with written_aside(record, mode=0o600) as aside:
            aside.write_bytes(_line(path, text.encode()))
        by_age = sorted(record.parent.iterdir(), key=lambda each: each.stat().st_mtime_ns)
        for old in by_age[:-MOST_RECORDS]:
            old.unlink()


def is_own(path: Path) -> bool:
    """Whether a run of this user wrote the file with exactly this content and path."""
    record = _record(path)
    try:
        return record is not None and record.read_bytes() == _line(path, path.read_bytes())
    except OSError:
        return False


def _record(path: Path) -> Path | None:
    """The record of a config.yaml, a separate file as runs may start concurrently; None without a home directory."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # the XDG specification ignores relative paths
        state = Path(os.path.expanduser("~/.local/state"))
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    return state / "makeweight" / "trusted" / name if state.is_absolute() else None


def _line(path: Path, content: bytes) -> bytes:
    """A line in the format of `sha256sum`."""
    return f"{hashlib.sha256(content).hexdigest()}  ".encode() + os.fsencode(os.path.realpath(path)) + b"\n"
