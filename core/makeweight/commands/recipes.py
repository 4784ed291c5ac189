"""Recipes: YAML 1.2 files that hold options, read with every key checked, and written resolved."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ..errors import UsageError
from ..files.untrusted import MOST_YAML, parse_yaml, read_text


def load_yaml(text: str) -> Any:
    """The value of a word on the command line. Raises UsageError for what is no YAML."""
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not YAML that can be read: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """A recipe as a dict, with dashes in keys turned to underscores. Raises UsageError for what is no recipe."""
    try:
        recipe = parse_yaml(read_text(path, MOST_YAML))
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"recipe {path} is not YAML that can be read: {error}") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"recipe {path} holds a {type(recipe).__name__}: expected a table of options, 'epochs: 10'")
    return underscored(recipe)


def write(recipe: Mapping[str, Any]) -> str:
    """A recipe as YAML text that `read` gives back."""
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(dict(recipe), stream)
    return stream.getvalue()


def underscored(recipe: Mapping[Any, Any]) -> dict[str, Any]:
    """Option names (two levels, and those of the stages) as Python writes them; tables of layers are left alone."""

    def level(table: Mapping[Any, Any]) -> dict[str, Any]:
        return {str(key).replace("-", "_"): value for key, value in table.items()}

    result = level(recipe)
    for key, value in result.items():
        if key == "stages" and isinstance(value, list):
            result[key] = [underscored(stage) if isinstance(stage, dict) else stage for stage in value]
        elif isinstance(value, dict):
            result[key] = level(value)
    return result
