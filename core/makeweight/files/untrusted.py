"""JSON and YAML from files that anyone may have written: bounded in size, depth, aliases and digits, and finite.

All functions raise ValueError, with what is wrong, for what is outside these bounds or is not JSON or YAML at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

MOST_BYTES = 64 << 20
"""of a JSON file, unless another limit is given"""
MOST_YAML = 1 << 17
"""characters of YAML, which is parsed in pure Python: seconds of it"""
DEEPEST = 64
"""tables and lists within each other"""
MOST_VALUES, MOST_YAML_VALUES = 1 << 22, 100_000
"""values of JSON, and of YAML with its aliases written out"""
LONGEST_NUMBER = 100
"""digits of a number"""


def read_text(path: Path, limit: int = MOST_BYTES) -> str:
    """A text file of at most `limit` bytes. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError("it is not text") from error


def read_json(path: Path, limit: int = MOST_BYTES) -> Any:
    """The value of a JSON file. Raises OSError where it cannot be read."""
    return parse_json(read_text(path, limit))


def parse_json(text: str | bytes, non_finite: bool = False) -> Any:
    """The value of JSON text. `non_finite`: NaN and infinities, which Python's writer writes, are read as None."""

    def constant(name: str) -> None:
        if not non_finite:
            raise ValueError(f"it holds the number {name}")

    def real(digits: str) -> float | None:
        value = float(_bounded(digits))
        if abs(value) < float("inf"):
            return value
        constant(digits)
        return None

    try:
        text = text.decode() if isinstance(text, bytes) else text
        if sum(map(text.count, ",[{")) > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES:,} values")
        value = json.loads(text, parse_constant=constant, parse_float=real, parse_int=lambda each: int(_bounded(each)))
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except UnicodeError as error:
        raise ValueError("it is not text") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_depth(value)
    return value


def parse_yaml(text: str) -> Any:
    """The value of YAML 1.2, where `1e-3` is a number, `no` a word and `010` ten; in YAML 1.1 none of them is."""
    if len(text) > MOST_YAML:
        raise ValueError(f"it has more than {MOST_YAML:,} characters")
    try:
        _check_events(YAML(typ="safe", pure=True).parse(text))
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{getattr(error, 'problem', None) or 'unreadable'}{where}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (TypeError, OverflowError, LookupError, AssertionError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error  # ruamel's own, on a key that is a list
    _check_plain(value)
    return value


def _check_events(events: Iterable[Any]) -> None:
    """Bound what YAML text comes to with its aliases written out, before any of it is made."""
    sizes: dict[str, int] = {}  # values of each anchor
    open_ones: list[tuple[str | None, int]] = []  # anchors of the collections around, and the count before each
    count = 0
    for event in events:
        if isinstance(event, CollectionStartEvent):
            open_ones.append((event.anchor, count))
            if event.anchor is not None:
                sizes[event.anchor] = MOST_YAML_VALUES  # one that holds itself has no end
        elif isinstance(event, CollectionEndEvent):
            anchor, before = open_ones.pop()
            if anchor is not None:
                sizes[anchor] = count - before + 1
        elif isinstance(event, ScalarEvent) and event.anchor is not None:
            sizes[event.anchor] = 1
        is_value = isinstance(event, ScalarEvent | CollectionStartEvent)
        count += sizes.get(event.anchor, 1) if isinstance(event, AliasEvent) else is_value
        if count > MOST_YAML_VALUES:
            raise ValueError(f"it has more than {MOST_YAML_VALUES:,} values, aliases written out")
        if len(open_ones) > DEEPEST:
            raise ValueError("it is nested too deeply")
        if isinstance(event, ScalarEvent) and event.implicit[0]:
            _check_digits(event.value)


def _check_digits(text: str) -> None:
    """Refuse a plain scalar that YAML may take for an endless number."""
    if len(text) > LONGEST_NUMBER and text.lstrip("+-.")[:1].isdigit() and " " not in text:
        raise ValueError(f"it holds a number of {len(text):,} digits")


def _bounded(digits: str) -> str:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"it holds a number of {len(digits):,} digits")
    return digits


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [each for outer in level for each in _inside(outer)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _check_plain(value: Any) -> None:
    """Refuse NaN and infinities (`.nan`, `.inf`, 1e999), and what JSON has no word for: dates, sets, bytes."""
    rest = [value]
    while rest:
        each = rest.pop()
        if isinstance(each, float) and not abs(each) < float("inf"):
            raise ValueError(f"it holds the number {each}")
        if isinstance(each, str):
            each.encode()  # half of a surrogate pair is no text
            with suppress(YAMLError):  # jsonargparse takes text in an option's place for YAML, and has no bounds
                _check_events(YAML(typ="safe", pure=True).parse(each))
        if not isinstance(each, str | int | float | list | dict | None):
            raise ValueError(f"it holds a {type(each).__name__}: expected text, numbers, lists and tables")
        rest += _inside(each)
        rest += each if isinstance(each, dict) else ()
