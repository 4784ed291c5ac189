"""The option parser. It is built from the fields of dataclasses, converts values to their types, and prints help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser

from ..errors import UsageError
from ..options import Options
from .command_line import dashed

USAGE = "trainer [--recipe FILE] [--plugins NAME,NAME] [options]\n       trainer VERB [arguments]"
EPILOG = (
    "Options of a plugin are --<plugin>.<option>: 'trainer --plugins prune --help' shows those of prune. "
    "'trainer plugins' lists the installed plugins and their verbs."
)


class OptionParser:
    """Parser of the core's options and of the options of plugins. `classes` are the plugins' dataclasses by name."""

    def __init__(self, classes: Mapping[str, type]) -> None:
        self.kinds = {name: get_type_hints(cls) for name, cls in {"": Options, **classes}.items()}
        self.parser = ArgumentParser(prog="trainer", usage=USAGE, epilog=EPILOG, exit_on_error=False)
        self.parser.description = "Train a network with plugins that compress it, export it, and write a report."
        core = self.parser.add_argument_group("options")
        core.add_argument("--recipe", metavar="FILE", help="YAML file of options; the command line overrides it")
        self._add(core, Options, "")
        for name, cls in classes.items():
            group = self.parser.add_argument_group(f"plugin {name}", (cls.__doc__ or "").strip().partition("\n")[0])
            self._add(group, cls, name)

    def _add(self, group: Any, cls: type, plugin: str) -> None:
        helps = {name: text for base in reversed(cls.__mro__[:-1]) for name, text in _helps(base).items()}
        for field in fields(cls):
            if not field.init:
                continue
            kind = self.kinds[plugin][field.name]
            flag: dict[str, Any] = {"nargs": "?", "const": True} if kind is bool else {}
            if get_origin(kind) is not Literal and not flag:
                flag["metavar"] = field.name.upper()
            key = f"{plugin}.{field.name}" if plugin else field.name
            text = " ".join(helps.get(field.name, "").split())
            group.add_argument(dashed(key), type=kind, default=_default(field), help=text, **flag)

    def print_help(self) -> None:
        self.parser.print_help()

    def kind(self, key: str) -> Any:
        """The type of an option such as `epochs` or `prune.sparsity`, or None if the option does not exist."""
        first, _, rest = key.partition(".")
        return self.kinds[first].get(rest.partition(".")[0]) if first in self.kinds else self.kinds[""].get(first)

    def complete(self, words: Mapping[str, str | None]) -> dict[str, str]:
        """The given options, with `true` for flags without a value. Raises UsageError for other missing values."""
        for key, text in words.items():
            if text is None and self.kind(key) is not bool:
                raise UsageError(f"{dashed(key)}: expected a value after it")
        return {key: "true" if text is None else text for key, text in words.items()}

    def typed(self, values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """All options as values of their types. Options that are missing in `values` have their defaults.

        `values` has the form of a recipe; strings of the command line are parsed as the type of the field. `where`
        precedes messages. Raises UsageError `option value: expected …`.
        """
        for key, value in self._given(values):
            if value is None and NoneType not in get_args(self.kind(key)):
                raise UsageError(f"{where}{key} is empty: expected {spoken(self.kind(key))}")
        try:
            options: dict[str, Any] = self.parser.parse_object(dict(values)).as_dict()
            return options
        except ArgumentError as error:
            for key, value in self._given(values):  # jsonargparse's message has several lines: find the option
                if not self._fits(key, value):
                    raise UsageError(f"{where}{key} {_shown(value)}: expected {spoken(self.kind(key))}") from error
            raise UsageError(f"{where}{' '.join(str(error).split())}") from error

    def _given(self, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if name in self.kinds:
                yield from ((f"{name}.{option}", each) for option, each in value.items())
            else:
                yield name, value

    def _fits(self, key: str, value: Any) -> bool:
        plugin, _, option = key.rpartition(".")
        try:
            self.parser.parse_object({plugin: {option: value}} if plugin else {key: value}, defaults=False)
        except ArgumentError:
            return False
        return True


def _helps(cls: type) -> dict[str, str]:
    """The strings below the fields of a dataclass, by field."""
    return {parameter.arg_name: parameter.description or "" for parameter in parse_from_object(cls).params}


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _shown(value: Any) -> str:
    return " ".join(str(value).split())


def spoken(kind: Any) -> str:
    """A type in words for error messages, such as "a whole number"."""
    arguments = [argument for argument in get_args(kind) if argument is not NoneType]
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(spoken(argument) for argument in arguments)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(kind) is dict:
        return f"a table with {spoken(arguments[1])} for each name"
    if get_origin(kind) is list:
        return f"a list, each {spoken(arguments[0])}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a table"}
    return plain.get(kind, getattr(kind, "__name__", str(kind)))
