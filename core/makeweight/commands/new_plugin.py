"""`trainer plugins new NAME`: write the folder of a plugin that works, from the files in `template/`."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from string import Template

from ..discovery import installed
from ..errors import UsageError
from ..files.writing import UnwritableError, aside_name
from ..options import Options, require

TEMPLATE = Path(__file__).with_name("template")
"""files named `<name>.in`, in which `NAME` in a path, and `$name` and its like in the text, are filled in"""
LONGEST = 30
"""characters of a name: with more, lines of the written code would become too long"""
TAKEN = {
    **dict.fromkeys(("help", "recipe", "version"), "an option of the trainer"),
    **dict.fromkeys(("core", "makeweight"), "the core's own"),
    **dict.fromkeys(("loss", "task"), "the name of a loss"),
    **dict.fromkeys(("any", "tensor", "trainer"), "the name of a class that the code imports"),
    **dict.fromkeys(("makeweight_error", "usage_error"), "the name of a class that the code imports"),
}
"""names that a plugin cannot have, in addition to training options, installed plugins and Python's own names"""


def new_plugin(given: str, into: Path) -> Path:
    """Write a plugin's folder into the folder `into`, whole or not at all. Returns its path.

    Raises UsageError for a name that a plugin cannot have, a folder that exists, and a missing `into`.
    """
    name = checked_name(given)
    require(into.is_dir(), "--into", into, "a folder that exists")
    folder = into / name
    require(not os.path.lexists(folder), "NAME", given, f"a name whose folder is not there yet: {folder} exists")
    aside = aside_name(folder)
    try:
        for path, text in filled_in(name):
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).write_text(text, encoding="utf-8")
        aside.rename(folder)
    except OSError as error:
        raise UnwritableError(folder, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def checked_name(given: str) -> str:
    """The name of the entry point, with underscores for dashes. Raises UsageError for one that a plugin cannot have."""
    name = given.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        near = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", given).lower()).strip("_0123456789")
        hint = f": did you mean {near!r}?" if near and not _reason(near) else ""
        raise UsageError(f"NAME {given}: expected lower-case letters, digits and dashes, a letter first{hint}")
    require(len(name) <= LONGEST, "NAME", given, f"at most {LONGEST} characters")
    if reason := _reason(name):
        raise UsageError(f"NAME {given}: expected a name that is free: {name} is {reason}")
    return name


def _reason(name: str) -> str | None:
    """Why a plugin cannot have this name; None where it can."""
    if name in installed():
        return "an installed plugin ('trainer plugins' lists them)"
    if name in Options.__dataclass_fields__:
        return "an option of the trainer ('trainer --help' lists them)"
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return "a keyword of Python"
    return "a module of Python's standard library" if name in sys.stdlib_module_names else TAKEN.get(name)


def filled_in(name: str) -> Iterator[tuple[Path, str]]:
    """Yield (relative path, text) of each file of the template, with the plugin's name filled in."""
    values = {
        "name": name,
        "option": name.replace("_", "-"),
        "class_name": "".join(part.capitalize() for part in name.split("_")),
        "bounds": bounds(version("makeweight")),
    }
    for path in sorted(TEMPLATE.rglob("*.in")):
        text = Template(path.read_text(encoding="utf-8")).substitute(values)
        yield Path(str(path.relative_to(TEMPLATE).with_suffix("")).replace("NAME", name)), text


def bounds(release: str) -> str:
    """The versions of makeweight that keep this release's contract with plugins: `>=0.2,<0.3`, from 1.0 on `>=1,<2`."""
    major, minor = (int(part) for part in re.findall(r"\d+", release)[:2])
    return f">={major},<{major + 1}" if major else f">=0.{minor},<0.{minor + 1}"
