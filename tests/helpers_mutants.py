"""What the fuzzers share: an attempt with one mutant, changes of JSON, and a quick look-up of plugins."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from typing import Any
from unittest.mock import patch

from makeweight import MakeweightError, discovery

from .fuzz_checkpoints import DEEP, Files, change_value

Attempt = Callable[[int], bool]
"""Tries the mutant of this number: whether it was accepted. What it raises is a failure."""
LONGEST = 2100
"""characters of an error"""
TOKENS = ["{", "}", "[", "]", '"', "'", ",", ":", ": ", "- ", "\n", "\n  ", "\t", "#", "&a ", "*a", "<<: ", "? ", "|\n",
          ">\n", "!!", "!!python/object/apply:os.getcwd []", "!!binary ", "!!set ", "!!omap ", "!!int ", "%YAML 1.1\n",
          "---\n", "...\n", "~", "null", "true", "-1", "0x7f", "0o17", "1e999", ".inf", ".nan", "2001-12-04", "1_000",
          "9" * 200, "[" * 200, "{a: " * 100, "\\ud800", "\\x00", "\0", "\u00e9", "\u2028", "\ufeff",
          "os:system", "timm:resnet18", "prune", "kd", "stages", "plugins"]  # fmt: skip


def of_huffman(module: str) -> Any:
    """A module of the codec's own tests, which mypy knows by another name than Python."""
    return import_module(f"plugins.huffman.tests.{module}")


def accepts(action: Callable[[], object], said: str = "") -> bool:
    """Whether an action ends well; a MakeweightError of one line that holds `said` refuses. All else is raised."""
    try:
        action()
    except MakeweightError as error:
        text = str(error)
        if not text or "\n" in text or len(text) > LONGEST or said not in text:
            raise AssertionError(f"expected one line that holds {said!r}: {text[:300]!r}") from error
        return False
    return True


def drawn(seed: int, number: int) -> random.Random:
    """The source of the mutant of this number."""
    return random.Random(f"{seed} {number}")


def changed(trees: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Trees of JSON with one change to three."""
    files = Files(copy.deepcopy(trees), {})
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        if files.trees:
            change_value(files, draw)
    return files.trees


def as_text(tree: Any) -> str:
    return json.dumps(tree).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000)


def edited(text: str, draw: random.Random) -> str:
    """Text with one edit to four: a token put in, characters taken out, or a piece of it put elsewhere."""
    for _ in range(draw.randint(1, 4)):
        place, other = draw.randrange(len(text) + 1), draw.randrange(len(text) + 1)
        piece = draw.choice([draw.choice(TOKENS), text[other : other + draw.randrange(40)], str(draw.randrange(300))])
        text = text[:place] + piece + text[place + draw.choice([0, 0, 1, draw.randrange(20)]) :]
    return text


@contextmanager
def plugins_found_once() -> Iterator[None]:
    """The search for installed plugins takes five times as long as the reading of a small file."""
    slow, once = discovery.installed, cache(discovery.installed)
    with ExitStack() as patches:
        for name, module in list(sys.modules.items()):
            if name.startswith("makeweight") and getattr(module, "installed", None) is slow:
                patches.enter_context(patch.object(module, "installed", once))
        yield
