"""Command line and recipe to options: a first look finds the plugins, then all is parsed with their options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from . import recipes
from .errors import MakeweightError, UsageError, did_you_mean
from .options import CONTROL, Options, Stage, StageOptions
from .parser import build_parser, check_given, dashed, one_line, type_of
from .plugins import check_order, installed, load_class


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
    """The options that a plugin's instance holds: the fields of its dataclass that its constructor takes."""
    return {field.name: getattr(plugin, field.name) for field in fields(plugin) if field.init}


def parse(argv: Sequence[str], beside: Path | None = None) -> Configuration:
    """Parse a training command line. Raises UsageError in one line; --help prints and raises SystemExit(0).

    Where it names no recipe, options come from the file `beside`, whose code has to be trusted.
    """
    words = dict(_words(argv))
    recipe, name = _read_recipe(words, beside)
    names = words.pop("plugins") if "plugins" in words else recipe.get("plugins")
    recipe["plugins"] = _names(names)
    classes = {plugin: load_class(plugin) for plugin in recipe["plugins"]}
    parser = build_parser(classes)
    if "help" in words:
        parser.print_help()
        raise SystemExit(0)
    where = f"recipe {name}: "
    _check_keys(recipe, classes, where)
    _check_words(words, classes)
    recipe = _merge(recipe, _stage_words(words, recipe, name))
    with one_line(classes):
        typed = parser.parse_args([f"{dashed(key)}={value}" for key, value in words.items()], defaults=False).as_dict()
    values = _merge(recipe, typed)
    options, plugins = _build(parser, values, classes)
    check_order(plugins)
    stages = []
    for number, table in enumerate(options.stages):
        where = f"stage {number + 1}: "
        _check_keys(table, classes, where, set(StageOptions.__dataclass_fields__))
        stages.append(Stage(*_build(parser, _merge(values, recipes.underscored(table)), classes, where)))
    stem = Path(name).stem if name else re.sub(r"\W+", "-", options.model)
    return Configuration(options, plugins, stages or [Stage(options, plugins)], stem)


def _words(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(key, value) of each option, `--batch-size 4` and `--batch_size=4` alike; a flag's value is `true`."""
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--"):
            raise UsageError(f"unexpected {word!r}: options begin with --, and 'trainer --help' lists them")
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if not equals:
            plugins_own = "." in key  # which of its options are flags is not known yet
            flag = key == "help" or type_of(Options, key) is bool
            missing = not rest or rest[0].startswith("--")
            if missing and not flag and not plugins_own:
                raise UsageError(f"{dashed(key)} is given no value")
            value = "true" if missing or (flag and rest[0] not in ("true", "false")) else rest.pop(0)
        yield key, value


def _read_recipe(words: dict[str, str], beside: Path | None) -> tuple[dict[str, Any], str]:
    """The recipe named by --recipe; without one that `beside`, or with --resume what the run directory says it was.

    Raises UsageError for a recipe that was not named and names code, unless a run of this user wrote it.
    """
    if "recipe" in words:
        path = Path(words.pop("recipe"))
        return recipes.read(path), str(path)
    if beside is None and words.get("resume") == "true" and "out" in words:
        beside = Path(words["out"]) / "config.yaml"
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


def _check_words(words: Mapping[str, str], classes: Mapping[str, type]) -> None:
    """Refuse options that nothing has, before the parser would with less to say."""
    for key in words:
        if not key.startswith("stages."):
            _check_key(key.split(".", 1), classes, "--", set(Options.__dataclass_fields__))


def _check_keys(recipe: Mapping[str, Any], classes: Mapping[str, type], where: str,
                known: set[str] | None = None) -> None:  # fmt: skip
    """Refuse a recipe's or a stage's key that nothing has."""
    for key, value in recipes.underscored(recipe).items():
        if key in classes and not isinstance(value, dict):
            raise UsageError(f"{where}{key} {value}: expected a table of the plugin's options")
        for path in [[key, option] for option in value] if key in classes else [[key]]:
            _check_key(path, classes, where, known or set(Options.__dataclass_fields__))


def _check_key(path: list[str], classes: Mapping[str, type], where: str, known: set[str]) -> None:
    shown = dashed(".".join(path)) if where == "--" else f"{where}{'.'.join(path)}"
    if path[0] in classes and len(path) > 1:
        options = {field.name for field in fields(classes[path[0]]) if field.init}
        if path[1].split(".")[0] not in options:
            raise UsageError(f"{shown}: plugin {path[0]!r} has no such option: {did_you_mean(path[1], options)}")
    elif path[0] in classes:
        raise UsageError(f"{shown}: name one of the plugin's options: --{path[0]}.NAME VALUE")
    elif path[0] in installed() and path[0] not in known:
        raise UsageError(f"{shown}: plugin {path[0]!r} is not on: add it to --plugins")
    elif path[0] not in known or len(path) > 1:
        raise UsageError(f"{shown}: unknown option: {_nearest('.'.join(path), known | set(classes))}")


def _nearest(given: str, known: set[str]) -> str:
    close = did_you_mean(given, known)
    return close if close.startswith("did") else "'trainer --help' lists them"


def _stage_words(words: dict[str, str], recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Take `--stages.0.epochs 3` out of the words and return the recipe's stages with it set (counted from 0)."""
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


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the second over those of the first; plugins' tables by option, tables of layers as a whole."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if both else value
    return merged


def _build(parser: ArgumentParser, values: Mapping[str, Any], classes: Mapping[str, type],
           where: str = "") -> tuple[Options, dict[str, Any]]:  # fmt: skip
    """Check the values' types and make the options and the plugins, which check the values themselves."""
    check_given(values, classes, where)
    with one_line(classes, where):
        table = parser.parse_object(dict(values)).as_dict()
        plugins = {name: table.pop(name, {}) for name in classes}
        options = Options(**{key: value for key, value in table.items() if key in Options.__dataclass_fields__})
    instances = {}
    for name, cls in classes.items():
        try:
            instances[name] = cls(**plugins[name])
        except (MakeweightError, ValueError) as error:
            raise UsageError(f"{where}{name}.{error}") from error
    return options, instances
