"""From a command line and its recipe to options and plugins.

The words become a table like the recipe's (`words`); the table's keys are checked (`keys`), its values get the types of
the dataclasses' fields (`parser`), and the dataclasses are made from them, which check the values themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..discovery import load_class
from ..errors import MakeweightError, UsageError
from ..options import CONTROL, Options, Stage, StageOptions
from ..plugins import check_order
from . import keys, recipes
from .parser import OptionParser
from .words import as_table, read_words


@dataclass
class Configuration:
    """A parsed command line: options, the plugins by name in their order, and the stages (at least one)."""

    options: Options
    plugins: dict[str, Any]
    stages: list[Stage]
    name: str

    def resolved(self) -> dict[str, Any]:
        """The recipe that repeats this run."""
        core = {key: value for key, value in asdict(self.options).items() if key not in CONTROL}
        return core | {name: plugin_options(plugin) for name, plugin in self.plugins.items()}


def plugin_options(plugin: Any) -> dict[str, Any]:
    """The options of a plugin's instance: the fields that its constructor takes."""
    return {field.name: getattr(plugin, field.name) for field in fields(plugin) if field.init}


def parse(argv: Sequence[str], beside: Path | None = None) -> Configuration:
    """Parse a training command line. Raises UsageError in one line; --help prints and raises SystemExit(0).

    Without --recipe, options come from the file `beside`, if there is one; it is refused if it names untrusted code.
    """
    given = read_words(argv)
    recipe, name = _read_recipe(given, beside)
    recipe["plugins"] = _names(given.pop("plugins") if "plugins" in given else recipe.get("plugins"))
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
    return Configuration(options, plugins, stages or [Stage(options, plugins)], stem)


def _read_recipe(words: dict[str, str | None], beside: Path | None) -> tuple[dict[str, Any], str]:
    """The recipe named by --recipe; without one, `beside`, or with --resume the run directory's config.yaml.

    Raises UsageError for a recipe that was not named and names code, unless a run of this user wrote it.
    """
    if path := words.pop("recipe", None):
        return recipes.read(Path(path)), path
    if beside is None and words.get("resume", "false") in (None, "true") and words.get("out"):
        beside = Path(str(words["out"])) / "config.yaml"
    if beside is None or not beside.exists():
        return {}, ""
    from . import trust  # takes a while, and --help needs none of it

    recipe = recipes.read(beside)
    trust.check(recipe, beside, words)
    return recipe, str(beside)


def _names(given: Any) -> list[str]:
    """Plugin names from `prune,kd` or from a recipe's list. Raises UsageError for a name given twice."""
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else given or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UsageError(f"plugins {given}: expected names, 'prune,kd'")
    names = [name for name in names if name]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"plugins {','.join(names)}: {sorted(twice)[0]!r} is given twice")
    return names


def _take_stages(words: dict[str, str], recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Take `--stages.0.epochs 3` out of the words, and return the recipe's stages with it set (counted from 0)."""
    stages = [dict(stage) for stage in recipe.get("stages", []) if isinstance(stage, dict)]
    for key in [key for key in words if key.startswith("stages.")]:
        _, number, *path = key.split(".")
        if not number.isdigit() or int(number) >= len(stages) or not path:
            raise UsageError(f"--{key}: there are {len(stages)} stages in {name or 'no recipe'}, counted from 0")
        table = stages[int(number)]
        for part in path[:-1]:
            table[part] = dict(table.get(part, {}))
            table = table[part]
        table[path[-1]] = recipes.load_yaml(words.pop(key))
    return {"stages": stages} if stages else {}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The second table over the first; plugins' tables by option, tables of layers as a whole."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = result[key] | value if both else value
    return result


def _build(parser: OptionParser, values: Mapping[str, Any], classes: Mapping[str, type],
           where: str = "") -> tuple[Options, dict[str, Any]]:  # fmt: skip
    """Options and plugin instances from values of any type; both check the values. Raises UsageError."""
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
