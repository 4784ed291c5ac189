"""`package.module:name`, as options and recipes write it.

What a recipe names is trusted like a command line; nothing that a model file or a checkpoint holds comes here.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from .errors import UsageError


def resolve(path: str, what: str) -> Any:
    """What `package.module:name` refers to, looked up from the working directory too. Raises UsageError."""
    module_name, _, attribute = path.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise UsageError(f"{what} {path!r} cannot be imported: {type(error).__name__}: {error}") from error
    if isinstance(found, ModuleType) or not callable(found):
        raise UsageError(f"{what} {path!r} is a {type(found).__name__}: name a function or a class")
    return found
