"""The file of a sensitivity analysis: for each layer the metric against its sparsity. Read, it is not trusted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from makeweight import UsageError
from makeweight.plugin import did_you_mean, read_json

LIMIT = 16 << 20
"""bytes that a file may have"""


@dataclass(frozen=True)
class Curve:
    """One layer: its number of weights, and what the metric loses at each sparsity, ascending, both [n]."""

    weights: int
    sparsity: list[float]
    drop: list[float]


@dataclass(frozen=True)
class Curves:
    """The curves of a model's layers, and the file that they are from."""

    layers: dict[str, Curve]
    path: str

    def of(self, sizes: Mapping[str, int], asked: Iterable[str]) -> dict[str, Curve]:
        """The curves of the layers asked for. Raises UsageError where the file is of another model."""
        for name, curve in self.layers.items():
            if name not in sizes:
                raise UsageError(f"sensitivity {self.path} is of another model: this one has no layer {name!r}")
            if curve.weights != sizes[name]:
                raise UsageError(
                    f"sensitivity {self.path} is of another model: {name} has {curve.weights:,} weights there, "
                    f"{sizes[name]:,} here"
                )
        asked = list(asked)
        if missing := [name for name in asked if name not in self.layers]:
            raise UsageError(
                f"sensitivity {self.path} says nothing of {missing[0]!r}: {did_you_mean(missing[0], self.layers)}"
            )
        return {name: self.layers[name] for name in asked}


def as_json(model: str, data: str, metric: str, dense: float, examples: int, layers: Mapping[str, Any]) -> str:
    """What `read` gives back: `layers` maps a name to its weights, its sparsities and the metric's values at them."""
    record = {"format": "makeweight sensitivity 1", "model": model, "data": data, "metric": metric, "dense": dense,
              "examples": examples, "layers": dict(layers)}  # fmt: skip
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def read(path: str) -> Curves:
    """Read a file of `trainer sensitivity`. Raises UsageError, in one line, for whatever is not as it was written."""
    try:
        record = read_json(Path(path), LIMIT)
    except OSError as error:
        raise UsageError(f"sensitivity {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"sensitivity {path} is not JSON that can be read: {error}") from error
    try:
        return Curves(_layers(record), path)
    except _UnfitError as error:
        raise UsageError(f"sensitivity {path} is no file of 'trainer sensitivity': {error}") from error


class _UnfitError(ValueError):
    """What is wrong with a file."""


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise _UnfitError(what)


def _layers(record: Any) -> dict[str, Curve]:
    known = isinstance(record, dict) and record.get("format") == "makeweight sensitivity 1"
    _expect(known, "its format is not 'makeweight sensitivity 1'")
    found = record.get("layers")
    _expect(isinstance(found, dict) and len(found) > 0, "it has no layers")
    _expect(_is_number(record.get("dense")), "dense is no number")
    sign = -1 if record.get("metric") == "loss" else 1
    return {name: _curve(name, each, record["dense"], sign) for name, each in found.items()}


def _curve(name: str, each: Any, dense: float, sign: int) -> Curve:
    _expect(isinstance(each, dict), f"layer {name!r} is no table")
    weights, sparsity, values = each.get("weights"), each.get("sparsity"), each.get("values")
    _expect(isinstance(weights, int) and not isinstance(weights, bool) and 0 < weights < 1 << 48,
            f"the weights of {name!r} are no number")  # fmt: skip
    for what, numbers in (("sparsity", sparsity), ("values", values)):
        fits = isinstance(numbers, list) and len(numbers) > 0 and all(map(_is_number, numbers))
        _expect(fits, f"{what} of {name!r} is no list of numbers")
    _expect(len(sparsity) == len(values), f"{name!r} has {len(sparsity)} sparsities and {len(values)} values")
    _expect(all(low < high for low, high in zip([0, *sparsity], [*sparsity, 1], strict=True)),
            f"the sparsities of {name!r} do not rise between 0 and 1")  # fmt: skip
    return Curve(weights, [float(each) for each in sparsity], [sign * (dense - float(value)) for value in values])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
