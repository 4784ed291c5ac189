"""The parser of a training command line, made from the dataclasses that hold the options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser

from .errors import UsageError
from .options import Options

USAGE = "trainer [--recipe FILE] [--plugins NAME,NAME] [options]\n       trainer VERB [arguments]"
EPILOG = (
    "Options of a plugin are --<plugin>.<option>: 'trainer --plugins prune --help' shows those of prune. "
    "'trainer plugins' lists what is installed, and the verbs that it brings."
)


def build_parser(classes: Mapping[str, type]) -> ArgumentParser:
    """The parser of the core's options and those of the plugins that are on."""
    parser = ArgumentParser(prog="trainer", usage=USAGE, epilog=EPILOG, exit_on_error=False, allow_abbrev=False)
    parser.description = "Train a network with plugins that get it down to weight, export it and report."
    core = parser.add_argument_group("options")
    core.add_argument("--recipe", metavar="FILE", help="a YAML file of options, which the command line overrides")
    _add_options(core, Options, "")
    for name, cls in classes.items():
        group = parser.add_argument_group(f"plugin {name}", (cls.__doc__ or "").strip().partition("\n")[0])
        _add_options(group, cls, f"{name}.")
    return parser


def _add_options(group: Any, cls: type, prefix: str) -> None:
    hints = get_type_hints(cls)
    helps = {name: text for base in reversed(cls.__mro__[:-1]) for name, text in _helps(base).items()}
    for field in fields(cls):
        if not field.init:
            continue
        flag: dict[str, Any] = {"nargs": "?", "const": True} if hints[field.name] is bool else {}
        text = " ".join(helps.get(field.name, "").split())
        metavar = None if get_origin(hints[field.name]) is Literal or flag else field.name.upper()
        if metavar is not None:
            flag["metavar"] = metavar
        group.add_argument(
            dashed(prefix + field.name), type=hints[field.name], default=_default(field), help=text, **flag
        )


def _helps(cls: type) -> dict[str, str]:
    """The docstrings that stand under the fields of a dataclass."""
    return {parameter.arg_name: parameter.description or "" for parameter in parse_from_object(cls).params}


def dashed(key: str) -> str:
    """`batch_size` as it is typed: `--batch-size`. A third part, the name of a layer in a table, is left alone."""
    option, *layer = [".".join(key.split(".")[:2]), *key.split(".")[2:]]
    return "--" + ".".join([option.replace("_", "-"), *layer])


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def type_of(cls: type, name: str) -> Any:
    return get_type_hints(cls).get(name)


def check_given(values: Mapping[str, Any], classes: Mapping[str, type], where: str = "") -> None:
    """Refuse an option that is given nothing and needs something, `epochs:` in a recipe: the parser lets it pass."""
    tables = [("", Options, values)] + [(f"{name}.", cls, values.get(name) or {}) for name, cls in classes.items()]
    for prefix, cls, table in tables:
        for key, kind in get_type_hints(cls).items():
            if key in table and table[key] is None and NoneType not in get_args(kind):
                raise UsageError(f"{where}{prefix}{key} is given nothing: expected {_spoken(kind)}")


@contextmanager
def one_line(classes: Mapping[str, type], where: str = "") -> Iterator[None]:
    """Turn the parser's errors of several lines into `option given: expected …`."""
    try:
        yield
    except ArgumentError as error:
        text = str(error)
        key = re.search(r'Parser key "([^"]+)"', text)
        value = re.search(r"(?:Got value|Given value): (.*)", text)
        if key is None:
            raise UsageError(f"{where}{' '.join(text.split())}") from error
        path = key[1].split(".")
        kind = type_of(classes[path[0]], path[1]) if path[0] in classes else type_of(Options, path[0])
        raise UsageError(f"{where}{key[1]} {value[1] if value else '?'}: expected {_spoken(kind)}") from error


def _spoken(kind: Any) -> str:
    """A type as a person would say it."""
    arguments = [argument for argument in get_args(kind) if argument is not NoneType]
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_spoken(argument) for argument in arguments)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(kind) is dict:
        return f"a table with {_spoken(arguments[1])} for each name"
    if get_origin(kind) is list:
        return f"a list, each {_spoken(arguments[0])}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a table"}
    return plain.get(kind, getattr(kind, "__name__", str(kind)))
