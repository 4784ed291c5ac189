"""Which tests are slow, for the tests of the core and of every plugin: `make test-fast` leaves them out.

A test that starts a process is slow: a second Python imports torch, which takes longer than most tests. The rule reads
this from the code, so that no test needs a decorator for it. It begins at the test and at its fixtures, follows the
functions and classes of the test folders and of `makeweight.testing` that they name, and looks for `subprocess` and
`multiprocessing`. A test that is slow for another reason (long training, many cases) is marked where it stands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from inspect import unwrap
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function):
            fixtures = [each[-1].func for each in item._fixtureinfo.name2fixturedefs.values()]
            if starts_a_process([item.function, *fixtures]):
                item.add_marker(pytest.mark.slow)


def starts_a_process(begin: list[Any]) -> bool:
    """Whether these functions, or what they name of ours, name `subprocess` or `multiprocessing`."""
    left, seen = list(begin), set()
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            if module_of(each).partition(".")[0] in ("subprocess", "multiprocessing"):
                return True
            left += named_by(each)
    return False


def module_of(value: Any) -> str:
    return value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", ""))


@cache
def named_by(value: Any) -> list[Any]:
    """What a function or a class of ours refers to by name; nothing for everything else."""
    if isinstance(value, type) and is_ours(value):
        return [each for each in vars(value).values() if isinstance(each, FunctionType)]
    function = unwrap(getattr(value, "__func__", value)) if callable(value) else None
    if not (isinstance(function, FunctionType) and is_ours(function)):
        return []
    found = [function.__globals__.get(name) for name in names(function.__code__)]
    return [each for each in found if isinstance(each, (ModuleType, type)) or callable(each)]


def is_ours(value: Any) -> bool:
    """Whether a function or a class stands in a folder of tests, or in the module for the tests of plugins."""
    file = getattr(sys.modules.get(value.__module__), "__file__", None)
    return value.__module__ == "makeweight.testing" or (
        file is not None and Path(file).is_relative_to(ROOT) and "tests" in Path(file).relative_to(ROOT).parts
    )


def names(code: CodeType) -> Iterator[str]:
    """The global names and the attributes in a function's code, and in that of the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names(constant)
