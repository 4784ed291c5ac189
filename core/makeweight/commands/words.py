"""The words of a command line as a table of options, the form in which a recipe holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError


def read_words(argv: Sequence[str]) -> dict[str, str | None]:
    """The text of each option by its key: `--batch-size 4` and `--batch_size=4` are both `batch_size`.

    An option without a value has None. Raises UsageError for a word that is neither an option nor a value.
    """
    words: dict[str, str | None] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--"):
            raise UsageError(f"unexpected {word!r}: options begin with --, and 'trainer --help' lists them")
        key, equals, text = word[2:].partition("=")
        follows = bool(rest) and not rest[0].startswith("--")
        words[key.replace("-", "_")] = text if equals else rest.pop(0) if follows else None
    return words


def dashed(key: str) -> str:
    """`batch_size` as it is typed: `--batch-size`. A third part, a layer's name in a table, is left as it is."""
    option, *layer = [".".join(key.split(".")[:2]), *key.split(".")[2:]]
    return "--" + ".".join([option.replace("_", "-"), *layer])


def as_table(words: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a recipe has them: `prune.sparsity.conv1` becomes {"prune": {"sparsity": {"conv1": …}}}."""
    table: dict[str, Any] = {}
    for key, text in words.items():
        *path, last = key.split(".", 2)  # a layer's name has dots of its own
        inner = table
        for part in path:
            if not isinstance(inner.get(part), dict):
                inner[part] = {}
            inner = inner[part]
        inner[last] = text
    return table
