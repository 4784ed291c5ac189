"""Metrics of the whole evaluation set: over several processes, they see every example once and in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor

from ..errors import MakeweightError
from ..metrics import prediction, started


class WholeSet:
    """Metrics with `update` and `compute`, by name. Every process updates its own copies with all examples.

    With several processes, `update` is collective: it gathers the examples of one evaluation batch of every process,
    puts them in the order of the data set, and splits them into the batches of one process.
    """

    def __init__(self, metrics: Mapping[str, Any], device: torch.device, processes: int, batch_size: int) -> None:
        self.metrics = {name: started(metric, device) for name, metric in metrics.items()}
        self.device, self.processes, self.batch_size = device, processes, batch_size

    def update(self, output: Any, target: Any, examples: int) -> None:
        """Update with the output and target of this process's batch; both are None if it has no examples."""
        if not self.metrics:
            return
        for predicted, expected in self._batches((prediction(output), target), examples):
            for metric in self.metrics.values():
                metric.update(predicted, expected)

    def compute(self) -> dict[str, float]:
        """The value of each metric. Raises MakeweightError for a result that is not one number."""
        return {name: _as_number(name, metric.compute()) for name, metric in self.metrics.items()}

    def _batches(self, pair: tuple[Any, Any], examples: int) -> Iterator[tuple[Any, Any]]:
        if self.processes == 1:
            yield pair
            return
        parts = gather_object([(send_to_device(pair, "cpu"), examples)])
        parts = [(each, count) for each, count in parts if count > 0]
        sizes = [count for _, count in parts]
        columns = [in_turn([each[column] for each, _ in parts], sizes) for column in (0, 1)]
        for start in range(0, sum(sizes), self.batch_size):
            stop = min(start + self.batch_size, sum(sizes))
            predicted, expected = (_cut(column, start, stop) for column in columns)
            yield send_to_device((predicted, expected), self.device)


def in_turn(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Interleave the examples of several processes: the first of each, then the second of each, and so on.

    A part of size n is a tensor [n, …], a list of n examples, or a tuple or mapping of these. Raises MakeweightError
    for other values, and for tensors whose shapes differ after the first dimension.
    """
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: in_turn([part[name] for part in parts], sizes) for name in first}
    if isinstance(first, Tensor):
        if any(len(part) != size for part, size in zip(parts, sizes, strict=True)):
            raise MakeweightError("metric over several processes: expected one row per example in outputs and targets")
        if len({part.shape[1:] for part in parts}) > 1:
            raise MakeweightError("metric over several processes: expected batches of one shape, padded to one length")
        whole = torch.empty(sum(sizes), *first.shape[1:], dtype=first.dtype)
        for number, part in enumerate(parts):
            whole[number :: len(parts)] = part
        return whole
    if isinstance(first, tuple) or (isinstance(first, list) and _has_columns(first, sizes[0])):
        found = [in_turn([part[index] for part in parts], sizes) for index in range(len(first))]
        return tuple(found)
    if isinstance(first, list) and all(len(part) == size for part, size in zip(parts, sizes, strict=True)):
        examples: list[Any] = [None] * sum(sizes)
        for number, part in enumerate(parts):
            examples[number :: len(parts)] = part
        return examples
    raise MakeweightError(f"metric over several processes cannot gather a {type(first).__name__}: expected tensors")


def _has_columns(value: list[Any], size: int) -> bool:
    """Whether a list holds tensors [size, …], rather than `size` examples."""
    return bool(value) and all(isinstance(each, Tensor) and each.ndim > 0 and len(each) == size for each in value)


def _cut(value: Any, start: int, stop: int) -> Any:
    if isinstance(value, dict):
        return {name: _cut(each, start, stop) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_cut(each, start, stop) for each in value)
    return value[start:stop]


def _as_number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        given = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise MakeweightError(f"metric {name}: compute() returns {given}: expected one number") from error
