"""Converts a command line and its recipe to options and plugin instances.

`words` converts the arguments to a table like that of a recipe. `keys` checks the keys of the merged table. `parser`
converts its values to the types of the dataclass fields. The dataclasses then check the values in `__post_init__`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..discovery import load_class
from ..errors import MakeweightError, UsageError
from ..options import CONTROL, Options, Stage, StageOptions
from ..plugin_manager import check_order
from . import keys, recipes
from .command_line import as_table, read_words
from .parser import OptionParser


@dataclass
class Configuration:
    """A parsed command line: options, plugin instances by name in order, stages (at least one), and a run name.

    `remarks` are lines for the user.
    """

    options: Options
    plugins: dict[str, Any]
    stages: list[Stage]
    name: str
    remarks: list[str] = field(default_factory=list)

    def resolved(self) -> dict[str, Any]:
        """The complete recipe of this run, without the options in `CONTROL`. It repeats the run."""
        core = {key: value for key, value in asdict(self.options).items() if key not in CONTROL}
        return core | {name: plugin_options(plugin) for name, plugin in self.plugins.items()}


def plugin_options(plugin: Any) -> dict[str, Any]:
    """The options of a plugin instance: the dataclass fields of its constructor."""
    return {field.name: getattr(plugin, field.name) for field in fields(plugin) if field.init}


def parse(argv: Sequence[str], beside: Path | None = None) -> Configuration:
    """Parse the command line of a training run. --help prints the help and raises SystemExit(0).

    Without --recipe, the recipe is the file `beside` if it exists. Raises UsageError for invalid options, and if that
    file refers to untrusted code.
    """
    given = read_words(argv)
    for key in ("recipe", "plugins"):
        if given.get(key, "") is None:
            raise UsageError(f"--{key}: expected a value after it")
    exact = "recipe" not in given and beside is None  # a run that is resumed by its own config.yaml
    recipe, name = _read_recipe(given, beside)
    listed, replaced = recipe.get("plugins"), "plugins" in given
    recipe["plugins"] = _names(given.pop("plugins") if replaced else listed)
    remarks = keys.leave_out(recipe, _names(listed), name) if replaced and not exact else []
    classes = {plugin: load_class(plugin) for plugin in recipe["plugins"]}
    parser = OptionParser(classes)
    if "help" in given:
        parser.print_help()
        raise SystemExit(0)
    keys.check_recipe(recipe, classes, f"recipe {name}: ")
    keys.check_words(given, classes)
    words = parser.complete(given)
    recipe |= _take_stages(words, recipe, name)
    values = merged(recipe, as_table(words))
    options, plugins = _build(parser, values, classes)
    check_order(plugins)
    stages = []
    for number, stage in enumerate(options.stages, 1):
        table, where = recipes.underscored(stage), f"stage {number}: "
        keys.check_recipe(table, classes, where, StageOptions.__dataclass_fields__)
        stages.append(Stage(*_build(parser, merged(values, table), classes, where)))
    stem = Path(name).stem if name else re.sub(r"\W+", "-", options.model)
    return Configuration(options, plugins, stages or [Stage(options, plugins)], stem, remarks)


def _read_recipe(words: dict[str, str | None], beside: Path | None) -> tuple[dict[str, Any], str]:
    """The recipe and its name: from --recipe, else from `beside`, else with --resume config.yaml of the run directory.

    Raises UsageError if a recipe without --recipe refers to code, unless a run of this user wrote the recipe.
    """
    if path := words.pop("recipe", None):
        return recipes.read(Path(path)), path
    if beside is None and words.get("resume", "false") in (None, "true") and words.get("out"):
        beside = Path(str(words["out"])) / "config.yaml"
    if beside is None or not beside.exists():
        return {}, ""
    from . import trust  # slow to import, and not needed for --help

    recipe = recipes.read(beside)
    trust.check(recipe, beside, words)
    return recipe, str(beside)


def _names(given: Any) -> list[str]:
    """Plugin names from a string such as `prune,kd` or from the list of a recipe. Raises UsageError for repetitions."""
    names = re.split(r"[,\s]+", given) if isinstance(given, str) else given or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UsageError(f"plugins {given}: expected names, 'prune,kd'")
    names = [name for name in names if name]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"plugins {','.join(names)}: {sorted(twice)[0]!r} is given twice")
    return names


def _take_stages(words: dict[str, str], recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Remove options such as `--stages.0.epochs 3` from `words`, and return {"stages": …} with these options set."""
    stages = [dict(stage) for stage in recipe.get("stages", []) if isinstance(stage, dict)]
    for key in [key for key in words if key.startswith("stages.")]:
        _, number, *path = key.split(".")
        if not number.isdigit() or int(number) >= len(stages) or not path:
            raise UsageError(f"--{key}: {name or 'no recipe'} has {len(stages)} stages, counted from 0")
        table = stages[int(number)]
        for part in path[:-1]:
            table[part] = dict(table.get(part, {}))
            table = table[part]
        table[path[-1]] = recipes.load_yaml(words.pop(key))
    return {"stages": stages} if stages else {}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The table `base` updated with `over`. Tables of plugins are merged by option; tables of layers are replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = result[key] | value if both else value
    return result


def _build(parser: OptionParser, values: Mapping[str, Any], classes: Mapping[str, type],
           where: str = "") -> tuple[Options, dict[str, Any]]:  # fmt: skip
    """Options and plugin instances from a table of strings or values. Raises UsageError for invalid values."""
    table = parser.typed(values, where)
    plugins = {name: table.pop(name, {}) for name in classes}
    options = Options(**{key: value for key, value in table.items() if key in keys.ALL})
    instances = {}
    for name, cls in classes.items():
        try:
            instances[name] = cls(**plugins[name])
        except (MakeweightError, ValueError) as error:
            raise UsageError(f"{where}{name}.{error}") from error
    return options, instances
