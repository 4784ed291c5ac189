"""Reads and writes recipes, YAML 1.2 files of options."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ..errors import UsageError
from ..files.untrusted import MOST_YAML, parse_yaml, read_text


def load_yaml(text: str) -> Any:
    """The YAML value of a command-line argument. Raises UsageError if it is not valid YAML."""
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not valid YAML: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """A recipe as a dict, with underscores for dashes in keys. Raises UsageError if it is not a YAML table."""
    try:
        recipe = parse_yaml(read_text(path, MOST_YAML))
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"recipe {path} is a {type(recipe).__name__}: expected a table of options, 'epochs: 10'")
    return underscored(recipe)


def write(recipe: Mapping[str, Any]) -> str:
    """A recipe as YAML text, the inverse of `read`."""
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(dict(recipe), stream)
    return stream.getvalue()


def underscored(recipe: Mapping[Any, Any]) -> dict[str, Any]:
    """A recipe with underscores for dashes in option names, including plugin tables and stages, but not layer names."""

    def level(table: Mapping[Any, Any]) -> dict[str, Any]:
        return {str(key).replace("-", "_"): value for key, value in table.items()}

    result = level(recipe)
    for key, value in result.items():
        if key == "stages" and isinstance(value, list):
            result[key] = [underscored(stage) if isinstance(stage, dict) else stage for stage in value]
        elif isinstance(value, dict):
            result[key] = level(value)
    return result
