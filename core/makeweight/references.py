"""`package.module:name`, as options and recipes write it.

Only names that the user trusts come here: `trust` refuses others before, and nothing that a model file or a checkpoint
holds is a name of code.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any

from .errors import UsageError

REFERENCE = re.compile(
    r"(?<![\w.-])[^\W\d][\w-]*(?:\.[^\W\d][\w-]*)*"  # package.module; a file's name may have dashes
    r":[^\W\d]\w*(?:\.[^\W\d]\w*)*"
)
"""all that `resolve` accepts, and so all that `trust` has to look for"""


def resolve(path: str, what: str) -> Any:
    """What `package.module:name` refers to, looked up from the working directory too. Raises UsageError."""
    if not REFERENCE.fullmatch(path):
        raise UsageError(f"{what} {path!r}: expected package.module:function")
    module_name, _, attribute = path.partition(":")
    try:
        with _working_directory_first():
            found: Any = import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise UsageError(f"{what} {path!r} cannot be imported: {type(error).__name__}: {error}") from error
    if isinstance(found, ModuleType) or not callable(found):
        raise UsageError(f"{what} {path!r} is a {type(found).__name__}: name a function or a class")
    return found


@contextmanager
def _working_directory_first() -> Iterator[None]:
    """Import as a script of the working directory would; later imports look there after all other places."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        with suppress(ValueError):  # what was imported may have changed the path
            sys.path.remove("")
        if "" not in sys.path:
            sys.path.append("")


def import_installed(name: str) -> ModuleType:
    """Import a module that a file may ask for, never from the working directory. Raises ImportError."""
    before = list(sys.path)
    here = os.path.realpath(os.curdir)
    sys.path[:] = [entry for entry in before if os.path.realpath(entry) != here]
    try:
        return import_module(name)
    finally:
        sys.path[:] = before
