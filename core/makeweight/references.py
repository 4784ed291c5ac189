"""Resolves references of the form `package.module:name` in options and recipes.

Resolving a reference runs code. `commands.trust` refuses references from untrusted recipes first, and model files and
checkpoints never contain references.
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
    r"(?<![\w.-])[^\W\d][\w-]*(?:\.[^\W\d][\w-]*)*"  # package.module; the name of a file may contain dashes
    r":[^\W\d]\w*(?:\.[^\W\d]\w*)*"
)
"""every reference that `resolve` accepts; `commands.trust` searches recipes for it"""


def resolve(path: str, what: str) -> Any:
    """The function or class `package.module:name`; modules of the working directory come first.

    `what` names the option in messages. Raises UsageError if `path` has another form, if the import fails, or if the
    object is not callable.
    """
    file, _, name = path.partition(":")
    if file.endswith(".py"):
        module = file.removeprefix("./").removesuffix(".py").replace("/", ".")
        raise UsageError(f"{what} {path!r}: expected a module, not a file: {module}:{name or 'FUNCTION'}")
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
        raise UsageError(f"{what} {path!r} is a {type(found).__name__}: expected a function or a class")
    return found


@contextmanager
def _working_directory_first() -> Iterator[None]:
    """Search the working directory first inside the context, and last after it (for imports inside functions)."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        with suppress(ValueError):  # the imported module may have changed sys.path
            sys.path.remove("")
        if "" not in sys.path:
            sys.path.append("")


def import_installed(name: str) -> ModuleType:
    """Import a module, but never from the working directory. Raises ImportError."""
    before = list(sys.path)
    here = os.path.realpath(os.curdir)
    sys.path[:] = [entry for entry in before if os.path.realpath(entry) != here]
    try:
        return import_module(name)
    finally:
        sys.path[:] = before
