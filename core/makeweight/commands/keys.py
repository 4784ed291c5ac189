"""The keys of recipes, stages and command lines: unknown ones are errors with a suggestion."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from ..discovery import installed
from ..errors import UsageError, did_you_mean
from ..options import Options
from .words import dashed

ALL = frozenset(Options.__dataclass_fields__)
"""the core's options"""


def check_words(words: Collection[str], classes: Mapping[str, type]) -> None:
    """Raise UsageError for an option of the command line that neither the core nor a chosen plugin has."""
    for key in words:
        if not key.startswith("stages."):
            _check(key.split(".", 1), classes, dashed(key), ALL)


def check_recipe(
    recipe: Mapping[str, Any], classes: Mapping[str, type], where: str, known: Collection[str] = ALL
) -> None:
    """Raise UsageError for a key of a recipe, or of one of its stages, that is not a known option."""
    for key, value in recipe.items():
        if key in classes and not isinstance(value, dict):
            raise UsageError(f"{where}{key} {value}: expected a table of the plugin's options")
        for path in [[key, option] for option in value] if key in classes else [[key]]:
            _check(path, classes, where + ".".join(path), known)


def _check(path: list[str], classes: Mapping[str, type], shown: str, known: Collection[str]) -> None:
    plugin, *option = path
    if plugin in classes and not option:
        raise UsageError(f"{shown}: name one of the plugin's options: --{plugin}.NAME VALUE")
    if plugin in classes:
        options = {field.name for field in fields(classes[plugin]) if field.init}
        if option[0].split(".")[0] not in options:
            raise UsageError(f"{shown}: plugin {plugin!r} has no such option: {did_you_mean(option[0], options)}")
    elif plugin in installed() and plugin not in known:
        raise UsageError(f"{shown}: plugin {plugin!r} is not on: add it to --plugins")
    elif plugin not in known or option:
        hint = "'trainer --help' lists them"
        close = did_you_mean(".".join(path), {*known, *classes})
        raise UsageError(f"{shown}: unknown option: {close if close.startswith('did') else hint}")
