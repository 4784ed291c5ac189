"""Sensitivity files: for each layer, the metric at several sparsities. A file that is read is untrusted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from makeweight import UsageError
from makeweight.plugin import did_you_mean, read_json

LIMIT = 16 << 20
"""largest file that is read, in bytes"""


@dataclass(frozen=True)
class Curve:
    """Sensitivity of one layer.

    `weights`: number of weights. `sparsity` [n]: ascending, between 0 and 1. `drop` [n]: how much the metric worsens at
    each sparsity, compared to no pruning (accuracy lost, or loss gained).
    """

    weights: int
    sparsity: list[float]
    drop: list[float]


@dataclass(frozen=True)
class Curves:
    """Curves by layer name, and the path of the file that holds them."""

    layers: dict[str, Curve]
    path: str

    def of(self, sizes: Mapping[str, int], names: Iterable[str]) -> dict[str, Curve]:
        """The curves of the layers `names`. `sizes`: number of weights of every layer of the model.

        Raises UsageError if the file belongs to another model, or has no curve for a layer.
        """
        for name, curve in self.layers.items():
            if name not in sizes:
                raise UsageError(f"sensitivity {self.path} belongs to another model: this one has no layer {name!r}")
            if curve.weights != sizes[name]:
                raise UsageError(
                    f"sensitivity {self.path} belongs to another model: {name} has {curve.weights:,} weights there, "
                    f"{sizes[name]:,} in this one"
                )
        names = list(names)
        if missing := [name for name in names if name not in self.layers]:
            raise UsageError(
                f"sensitivity {self.path} has no layer {missing[0]!r}: {did_you_mean(missing[0], self.layers)}"
            )
        return {name: self.layers[name] for name in names}


def as_json(model: str, data: str, metric: str, dense: float, examples: int, layers: Mapping[str, Any],
            higher_is_better: bool | None = None) -> str:  # fmt: skip
    """The text of a sensitivity file. `layers` maps a name to `weights`, `sparsity` [n] and metric `values` [n].

    `dense` is the metric without pruning, measured on `examples` examples. Without `higher_is_better`, a lower value is
    better for `loss` alone.
    """
    better = {} if higher_is_better is None else {"higher_is_better": higher_is_better}
    record = {"format": "makeweight sensitivity 1", "model": model, "data": data, "metric": metric, "dense": dense,
              **better, "examples": examples, "layers": dict(layers)}  # fmt: skip
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def read(path: str) -> Curves:
    """Read a file written by `trainer sensitivity`. Raises UsageError if it cannot be read or is malformed."""
    try:
        record = read_json(Path(path), LIMIT)
    except OSError as error:
        raise UsageError(f"sensitivity {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"sensitivity {path} is not readable JSON: {error}") from error
    try:
        return Curves(_layers(record), path)
    except _MalformedError as error:
        raise UsageError(f"sensitivity {path} is not a file written by 'trainer sensitivity': {error}") from error


class _MalformedError(ValueError):
    """The file does not have the expected contents."""


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _MalformedError(otherwise)


def _layers(record: Any) -> dict[str, Curve]:
    known = isinstance(record, dict) and record.get("format") == "makeweight sensitivity 1"
    _expect(known, "expected the format 'makeweight sensitivity 1'")
    found = record.get("layers")
    _expect(isinstance(found, dict) and len(found) > 0, "expected a table of layers")
    _expect(_is_number(record.get("dense")), "dense: expected a number")
    better = record.get("higher_is_better", record.get("metric") != "loss")  # older files do not say it
    _expect(isinstance(better, bool), "higher_is_better: expected true or false")
    sign = 1 if better else -1
    return {name: _curve(name, each, record["dense"], sign) for name, each in found.items()}


def _curve(name: str, each: Any, dense: float, sign: int) -> Curve:
    _expect(isinstance(each, dict), f"layer {name!r}: expected a table")
    weights, sparsity, values = each.get("weights"), each.get("sparsity"), each.get("values")
    _expect(isinstance(weights, int) and not isinstance(weights, bool) and 0 < weights < 1 << 48,
            f"weights of {name!r}: expected a positive whole number")  # fmt: skip
    for key, numbers in (("sparsity", sparsity), ("values", values)):
        fits = isinstance(numbers, list) and len(numbers) > 0 and all(map(_is_number, numbers))
        _expect(fits, f"{key} of {name!r}: expected a list of numbers")
    _expect(len(sparsity) == len(values), f"{name!r} has {len(sparsity)} sparsities but {len(values)} values")
    _expect(all(low < high for low, high in zip([0, *sparsity], [*sparsity, 1], strict=True)),
            f"sparsity of {name!r}: expected ascending numbers between 0 and 1")  # fmt: skip
    return Curve(weights, [float(each) for each in sparsity], [sign * (dense - float(value)) for value in values])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
