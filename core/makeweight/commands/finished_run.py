"""Reads and validates summary.json and metrics.jsonl of a finished run, which are untrusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import MakeweightError
from ..files.untrusted import parse_json, read_text
from .confusion import check_classes

LARGEST_METRICS = 1 << 28
"""maximum size of metrics.jsonl in bytes"""
MOST_LINES = 20_000
"""maximum number of lines of metrics.jsonl that are used; of a longer file, every n-th line"""
MOST_CONTROLS = 100
"""maximum number of rows of the table of sizes"""


def read_run(out: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The content of summary.json, and the finite numbers of each line of metrics.jsonl.

    Raises MakeweightError if the run is missing or not finished, or if a file is damaged.
    """
    name = "summary.json"
    try:
        summary = _summary(parse_json(read_text(out / name), non_finite=True))
        name = "metrics.jsonl"
        lines = read_text(out / name, LARGEST_METRICS).split("\n")
        metrics = [_line(parse_json(line, non_finite=True)) for line in _thinned([each for each in lines if each])]
    except FileNotFoundError as error:
        raise MakeweightError(f"{out}: not a finished run: {name} is missing") from error
    except OSError as error:
        raise MakeweightError(f"{out / name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise MakeweightError(f"{out / name} is damaged: {error}") from error
    return summary, metrics


def read_config(out: Path) -> str:
    """The text of config.yaml, empty if there is no such file. Raises MakeweightError if it is not UTF-8."""
    try:
        return read_text(out / "config.yaml", 1 << 20)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise MakeweightError(f"{out / 'config.yaml'} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise MakeweightError(f"{out / 'config.yaml'} is damaged: {error}") from error


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_size(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


RUN = {"steps": _is_count, "seconds": is_number, "processes": _is_count, "parameters": _is_count, "model": _is_text,
       "data": _is_text, "plugins": _is_list_of(_is_text), "metric": _is_text}  # fmt: skip
EXPORT = {"path": _is_text, "bytes": _is_size, "dense_bytes": _is_size, "ratio": is_number,
          "controls": lambda value: isinstance(value, dict) and len(value) < MOST_CONTROLS
          and all(map(_is_size, value.values()))}  # fmt: skip
PROGRAM = {"bytes": _is_size}
TENSOR = {"name": _is_text, "shape": _is_list_of(_is_count), "dtype": _is_text, "density": is_number,
          "bits_per_weight": is_number, "bytes": _is_count}  # fmt: skip


def _summary(found: Any) -> dict[str, Any]:
    summary: dict[str, Any] = _table(found, "it", RUN)
    export = _table(summary.get("export"), "export", EXPORT)
    for table in (summary, export):
        metric = table.get(summary["metric"])
        if not (metric is None or is_number(metric)):
            raise ValueError(f"its {summary['metric']!r} is not a number")
    if not isinstance(programs := export.setdefault("programs", {}), dict) or len(programs) >= MOST_CONTROLS:
        raise ValueError("its programs are not a table")
    for name, program in programs.items():
        programs[name] = _table({"bytes": program} if _is_size(program) else program, f"program {name!r}", PROGRAM)
        if not all(value is None or is_number(value) for value in programs[name].values()):
            raise ValueError(f"a value of program {name!r} is not a number")
    check_classes(summary)
    if not isinstance(export.get("tensors"), list):
        raise ValueError("its list of tensors is missing")
    for number, each in enumerate(export["tensors"]):
        _table(each, f"tensor {number}", TENSOR)
    return summary


def _table(value: Any, what: str, entries: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a table")
    for name, fits in entries.items():
        if name not in value or not fits(value[name]):
            raise ValueError(f"{name!r} of {what} is {'invalid' if name in value else 'missing'}")
    return value


def _thinned(lines: list[str]) -> list[str]:
    return lines[:: -(-len(lines) // MOST_LINES) or 1]


def _line(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not is_number(value.get("step")):
        raise ValueError("a line has no step")
    return {name: each for name, each in value.items() if is_number(each)}
