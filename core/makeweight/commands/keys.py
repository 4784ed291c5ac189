"""Checks the keys of recipes, stages and command lines, and suggests the closest known key in errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from ..discovery import installed
from ..errors import UsageError, did_you_mean
from ..options import Options
from .command_line import dashed

ALL = frozenset(Options.__dataclass_fields__)
"""names of the core's options"""


def check_words(words: Collection[str], classes: Mapping[str, type]) -> None:
    """Raise UsageError for an option that neither the core nor a plugin in `classes` has."""
    for key in words:
        if not key.startswith("stages."):
            _check(key.split(".", 1), classes, dashed(key), ALL)


def check_recipe(
    recipe: Mapping[str, Any], classes: Mapping[str, type], where: str, known: Collection[str] = ALL
) -> None:
    """Raise UsageError for a key of a recipe or of a stage that is unknown. `known` are the allowed core options."""
    for key, value in recipe.items():
        if key in classes and not isinstance(value, dict):
            raise UsageError(f"{where}{key} {value}: expected a table of the plugin's options")
        for path in [[key, option] for option in value] if key in classes else [[key]]:
            _check(path, classes, where + ".".join(path), known)


def leave_out(recipe: dict[str, Any], listed: Collection[str], name: str) -> list[str]:
    """Remove the tables of plugins that are not in `recipe["plugins"]`, from the recipe and its stages.

    A table counts as a plugin's if it is named after an installed plugin or one in `listed`, the recipe's plugin list
    before --plugins replaced it. Returns a line for the user if a table was removed. `name` is that of the recipe.
    """
    others = {*installed(), *listed} - {*recipe["plugins"]} - ALL
    stages = recipe.get("stages")
    removed: list[str] = []
    for table in [recipe, *(stages if isinstance(stages, list) else [])]:
        if isinstance(table, dict):
            removed += (found := [key for key in table if key in others])
            for key in found:
                del table[key]
    names = ", ".join(dict.fromkeys(removed))
    return [f"recipe {name}: its options of {names} are ignored, as --plugins leaves them out"] if removed else []


def _check(path: list[str], classes: Mapping[str, type], shown: str, known: Collection[str]) -> None:
    plugin, *option = path
    if plugin in classes and not option:
        raise UsageError(f"{shown}: expected an option of the plugin, --{plugin}.NAME VALUE")
    if plugin in classes:
        options = {field.name for field in fields(classes[plugin]) if field.init}
        if option[0].split(".")[0] not in options:
            raise UsageError(f"{shown}: plugin {plugin!r} has no such option: {did_you_mean(option[0], options)}")
    elif plugin in installed() and plugin not in known:
        raise UsageError(f"{shown}: plugin {plugin!r} is not enabled: add it to --plugins")
    elif plugin not in known or option:
        hint = "'trainer --help' lists them"
        close = did_you_mean(".".join(path), {*known, *classes})
        raise UsageError(f"{shown}: unknown option: {close if close.startswith('did') else hint}")
