"""Converts command-line arguments to a table of options like that of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError


def read_words(argv: Sequence[str]) -> dict[str, str | None]:
    """The value of each option by its key: `--batch-size 4` and `--batch_size=4` both have the key `batch_size`.

    Values are strings, None for an option without a value. Raises UsageError for an argument that is neither an option
    nor a value.
    """
    words: dict[str, str | None] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--"):
            raise UsageError(f"unexpected {word!r}: options begin with --, see 'trainer --help'")
        key, equals, text = word[2:].partition("=")
        follows = bool(rest) and not rest[0].startswith("--")
        key = key.replace("-", "_")
        words[key] = text if equals else rest.pop(0) if follows else None
        while key == "plugins" and words[key] is not None and rest and not rest[0].startswith("-"):
            words[key] = f"{words[key]},{rest.pop(0)}"  # names with blanks between them
    return words


def dashed(key: str) -> str:
    """The command-line form of a key: `--batch-size` for `batch_size`. The third part, a layer name, is not changed."""
    option, *layer = [".".join(key.split(".")[:2]), *key.split(".")[2:]]
    return "--" + ".".join([option.replace("_", "-"), *layer])


def as_table(words: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables as in a recipe: `prune.sparsity.conv1` becomes {"prune": {"sparsity": {"conv1": …}}}."""
    table: dict[str, Any] = {}
    for key, text in words.items():
        *path, last = key.split(".", 2)  # names of layers may contain dots
        inner = table
        for part in path:
            if not isinstance(inner.get(part), dict):
                inner[part] = {}
            inner = inner[part]
        inner[last] = text
    return table
