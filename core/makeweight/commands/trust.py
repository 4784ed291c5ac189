"""Which recipes may name code: those of this user's command lines, not those found beside a downloaded file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import MakeweightError, UsageError
from ..files.writing import written_aside
from ..references import REFERENCE

NO_CODE = {("model",): "timm:", ("data",): "imagefolder:"}
"""prefixes of values that look like a reference to code, by the only option for which they are none"""
TORCHVISION = "torchvision:"
"""prefix of names that plugins look up in torchvision's own list of models"""
MOST_VALUES = 100_000
"""values that are searched; aliases make a short file hold any number of them"""
MOST_RECORDS = 1000
"""run directories whose config.yaml is known as the user's own"""


def check(recipe: Mapping[str, Any], path: Path, given: Collection[str]) -> None:
    """Refuse a recipe that nobody named with --recipe if it names code.

    Options in `given` (`model`, `kd.teacher`, `stages.0.kd.teacher`) are overridden on the command line. A recipe that
    a run of this user wrote is accepted. Raises UsageError.
    """
    found = next(code_in(recipe, given), None)
    if found and not is_own(path):
        raise UsageError(f"{path} names code, {found}: to trust it, say --recipe {path}")


def code_in(recipe: Mapping[str, Any], given: Collection[str] = ()) -> Iterator[str]:
    """Each `package.module:name` in a recipe, after its option; an option of any plugin may be such a reference."""
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
            rest += [((*path, str(key))[:4], each) for key, each in inside]  # at most: stages, number, plugin, option


def _references(path: tuple[str, ...], value: str) -> Iterator[str]:
    option = path[2:] if path[0] == "stages" else path
    if option in NO_CODE and value.startswith(NO_CODE[option]):
        return
    for match in REFERENCE.finditer(value):
        if not (len(option) > 1 and match[0].startswith(TORCHVISION)):
            yield match[0]


def remember(path: Path, text: str) -> None:
    """Record that a run of this user writes `text` to its config.yaml, outside the run directory.

    Where that cannot be recorded, resuming the run asks for --recipe.
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
    """Whether the file is, byte for byte, what a run of this user wrote there."""
    record = _record(path)
    try:
        return record is not None and record.read_bytes() == _line(path, path.read_bytes())
    except OSError:
        return False


def _record(path: Path) -> Path | None:
    """The record of one config.yaml, a file of its own since runs may begin at the same time; None without a home."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # the specification's rule; it would lie in the working directory
        state = Path(os.path.expanduser("~/.local/state"))
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    return state / "makeweight" / "trusted" / name if state.is_absolute() else None


def _line(path: Path, content: bytes) -> bytes:
    """A line as `sha256sum` writes it."""
    return f"{hashlib.sha256(content).hexdigest()}  ".encode() + os.fsencode(os.path.realpath(path)) + b"\n"
