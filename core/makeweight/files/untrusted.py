"""Parses JSON and YAML of untrusted files, with bounds on size, depth, aliases and digits, and only finite numbers.

All functions raise ValueError, with the reason, if a text exceeds these bounds or is not valid JSON or YAML.
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
"""default maximum size of a JSON file"""
MOST_YAML = 1 << 17
"""maximum number of characters of YAML; the pure Python parser takes seconds for it"""
DEEPEST = 64
"""maximum nesting depth of tables and lists"""
MOST_VALUES, MOST_YAML_VALUES = 1 << 22, 100_000
"""maximum number of values of JSON, and of YAML with expanded aliases"""
LONGEST_NUMBER = 100
"""maximum number of digits of a number"""


def read_text(path: Path, limit: int = MOST_BYTES) -> str:
    """The content of a UTF-8 file of at most `limit` bytes. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError("it is not text") from error


def read_json(path: Path, limit: int = MOST_BYTES) -> Any:
    """The value of a JSON file of at most `limit` bytes. Raises OSError if it cannot be read."""
    return parse_json(read_text(path, limit))


def parse_json(text: str | bytes, non_finite: bool = False) -> Any:
    """The value of JSON text. With `non_finite`, NaN and infinities, as Python's `json` writes them, become None."""

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
            json.dumps(value, ensure_ascii=False).encode()  # raises UnicodeError for an unpaired surrogate
    except UnicodeError as error:
        raise ValueError("it is not text") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_depth(value)
    return value


def parse_yaml(text: str) -> Any:
    """The value of YAML 1.2 text. Unlike in YAML 1.1, `1e-3` is a number, `no` is a string and `010` is ten."""
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
        raise ValueError(f"{type(error).__name__}: {error}") from error  # ruamel fails so for a list as a key
    _check_plain(value)
    return value


def _check_events(events: Iterable[Any]) -> None:
    """Bound the size of YAML with expanded aliases from its events, before any value is constructed."""
    sizes: dict[str, int] = {}  # number of values under each anchor
    open_ones: list[tuple[str | None, int]] = []  # (anchor, count at its start) of each enclosing collection
    count = 0
    for event in events:
        if isinstance(event, CollectionStartEvent):
            open_ones.append((event.anchor, count))
            if event.anchor is not None:
                sizes[event.anchor] = MOST_YAML_VALUES  # until it is closed: an alias to itself is endless
        elif isinstance(event, CollectionEndEvent):
            anchor, before = open_ones.pop()
            if anchor is not None:
                sizes[anchor] = count - before + 1
        elif isinstance(event, ScalarEvent) and event.anchor is not None:
            sizes[event.anchor] = 1
        is_value = isinstance(event, ScalarEvent | CollectionStartEvent)
        count += sizes.get(event.anchor, 1) if isinstance(event, AliasEvent) else is_value
        if count > MOST_YAML_VALUES:
            raise ValueError(f"it has more than {MOST_YAML_VALUES:,} values with expanded aliases")
        if len(open_ones) > DEEPEST:
            raise ValueError("it is nested too deeply")
        if isinstance(event, ScalarEvent) and event.implicit[0]:
            _check_digits(event.value)


def _check_digits(text: str) -> None:
    """Raise ValueError for a plain scalar that YAML may parse as a very long number."""
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
    """Raise ValueError for NaN and infinities (`.nan`, `.inf`, 1e999), and for types that JSON lacks: dates, sets."""
    rest = [value]
    while rest:
        each = rest.pop()
        if isinstance(each, float) and not abs(each) < float("inf"):
            raise ValueError(f"it holds the number {each}")
        if isinstance(each, str):
            each.encode()  # raises UnicodeError, a ValueError, for an unpaired surrogate
            with suppress(YAMLError):  # jsonargparse parses the string of an option as YAML without any bounds
                _check_events(YAML(typ="safe", pure=True).parse(each))
        if not isinstance(each, str | int | float | list | dict | None):
            raise ValueError(f"it holds a {type(each).__name__}: expected text, numbers, lists and tables")
        rest += _inside(each)
        rest += each if isinstance(each, dict) else ()
