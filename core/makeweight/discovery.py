"""Looks plugins up by entry point, and validates their classes."""

from __future__ import annotations

import inspect
import sys
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import EntryPoint, distributions
from typing import Any

from . import hookspecs
from .errors import UsageError, did_you_mean
from .options import Options

GROUP = "makeweight"


COMMANDS = "makeweight.commands"
RESERVED = {"makeweight", "core", "recipe", "help"}
"""names that a plugin cannot have: of the core's own entry in files, its step, and words of the command line"""


def installed(group: str = GROUP) -> dict[str, EntryPoint]:
    """The entry points of a group by name, without importing them.

    The working directory, which `references.resolve` adds to sys.path as "", is not searched.
    """
    found: dict[str, EntryPoint] = {}
    for each in distributions(path=[entry for entry in sys.path if entry]):
        for entry in each.entry_points.select(group=group):
            found.setdefault(entry.name, entry)
    return dict(sorted(found.items()))


def distribution(entry: EntryPoint) -> str:
    """The name and version of the distribution that defines an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def load_entry(name: str, group: str = GROUP) -> Any:
    """Import the object of the entry point `name`. Raises UsageError if it is not installed or its import fails."""
    found = installed(group)
    if name not in found:
        raise UsageError(f"unknown plugin {name!r}: {did_you_mean(name, found)} ('trainer plugins' lists them)")
    try:
        return found[name].load()
    except Exception as error:
        where = f"plugin {name!r} ({distribution(found[name])}) cannot be imported from {found[name].value!r}"
        raise UsageError(f"{where}: {type(error).__name__}: {error}") from error


def load_class(name: str) -> type:
    """The class of an installed plugin. Raises UsageError unless it is a valid plugin class (see `check_hooks`).

    Every option must have a default, since reading a file creates the plugin without options.
    """
    cls = load_entry(name)
    where = f"plugin {name!r} ({distribution(installed()[name])})"
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise UsageError(f"{where}: {installed()[name].value!r} must be a dataclass")
    check_hooks(cls, where)
    if needed := [each.name for each in fields(cls) if each.init and each.default is each.default_factory is MISSING]:
        raise UsageError(
            f"{where}: option {needed[0]!r} has no default: expected one, since reading a file uses the defaults"
        )
    if name in Options.__dataclass_fields__ or name in RESERVED:
        raise UsageError(f"{where}: an option of the trainer has the same name")
    return cls


def check_hooks(cls: type, where: str) -> None:
    """Raise UsageError for hooks that pluggy would silently ignore: unmarked, misspelt, or with unknown arguments.

    Also refuses a class without any hook, one that compares instances by value (pluggy needs identity), and the
    attribute `after` of contract 0.
    """
    specs = {name: set(inspect.signature(spec).parameters) for name, spec in _specs().items()}
    hooks = 0
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        marked = hasattr(method, "makeweight_impl")
        if marked and name not in specs:
            raise UsageError(f"{where}: {name!r} is not a hook: {did_you_mean(name, specs)}")
        if not marked and (name in specs or name.startswith("on_")):
            fix = "mark it with @hookimpl" if name in specs else did_you_mean(name, specs)
            raise UsageError(f"{where}: {name!r} looks like a hook but is not one: {fix}")
        if marked:
            hooks += 1
            if vars(method)["makeweight_impl"]["wrapper"] and not inspect.isgeneratorfunction(method):
                raise UsageError(f"{where}: wrapper {name!r} must yield once: 'loss = yield', then 'return loss'")
            unknown = set(inspect.signature(method).parameters) - specs[name] - {"self"}
            if unknown:
                raise UsageError(
                    f"{where}: hook {name!r} has no argument {sorted(unknown)[0]!r}: it may take "
                    f"{', '.join(sorted(specs[name]))}"
                )
    if hasattr(cls, "after"):
        raise UsageError(
            f"{where}: attribute 'after' was removed after contract 0: a codec sets 'codec = True'; drop it elsewhere"
        )
    if not hooks:
        raise UsageError(f"{where}: {cls.__name__} has no hook: choose from {', '.join(specs)}")
    own_equality: Any = cls.__eq__
    if own_equality is not object.__eq__:
        raise UsageError(
            f"{where}: {cls.__name__} must be a dataclass with eq=False, or two equal instances could not register"
        )


def _specs() -> dict[str, Any]:
    return {name: spec for name, spec in vars(hookspecs).items() if hasattr(spec, "makeweight_spec")}


def name_of(plugin: object) -> str:
    """The entry point name of a plugin's class, or the class name in lower case if the class has no entry point."""
    value = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
    for name, entry in installed().items():
        package, _, attribute = entry.value.partition(":")
        if entry.value == value or (
            attribute == type(plugin).__qualname__ and type(plugin).__module__.startswith(f"{package}.")
        ):
            return name
    return type(plugin).__name__.lower()
