"""The task of a network: how the model is called on a batch, the loss, and the metric."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .references import resolve


def call_model(model: nn.Module, batch: Any) -> Any:
    """Return `model(x)` for a batch (x, y), and `model(**batch)` for a mapping, as Hugging Face models expect."""
    return model(batch[0]) if isinstance(batch, (list, tuple)) else model(**batch)


def target_of(batch: Any) -> Any:
    """The target y of a batch (x, y); for a mapping its `labels`, or the whole mapping if it has no `labels`."""
    return batch[1] if isinstance(batch, (list, tuple)) else batch.get("labels", batch)


def logits_of(output: Any) -> Any:
    """The logits of a model output, which may be a tensor, a mapping or an object with the attribute `logits`."""
    if isinstance(output, Mapping):
        return output["logits"]
    return getattr(output, "logits", output)


def correct(output: Any, target: Any) -> Tensor | None:
    """Top-1 accuracy of each example, [B]; the mean over pixels or tokens if an example has several targets.

    The class dimension is dimension 1 of an output tensor, and the last dimension of the logits of an output object
    (Hugging Face models). Targets of -100 are ignored. Returns None if the targets are not class indices.
    """
    logits = logits_of(output)
    if not isinstance(target, Tensor) or target.is_floating_point() or logits.ndim != target.ndim + 1:
        return None
    right = (logits.argmax(1 if logits is output else -1) == target).float().reshape(len(target), -1)
    counted = (target != -100).reshape(len(target), -1)
    fraction: Tensor = (right * counted).sum(1) / counted.sum(1).clamp(min=1)
    return fraction


def default_criterion(output: Any, target: Any) -> Tensor:
    """The loss in the model's output if it has one, otherwise cross entropy. A scalar."""
    if isinstance(output, Tensor):
        return cross_entropy(output, target)
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return cross_entropy(logits_of(output), target) if own is None else own


@dataclass
class Task:
    """Loss function, call of the model, and metric.

    `criterion(output, target)` returns a scalar and `forward(model, batch)` the model's output. `metric(output,
    target)` returns a value for each example, [B], or None if it does not apply.
    """

    criterion: Callable[[Any, Any], Tensor] = default_criterion
    forward: Callable[[nn.Module, Any], Any] = call_model
    metric: Callable[[Any, Any], Tensor | None] = correct

    @property
    def metric_name(self) -> str:
        return (
            "accuracy"
            if self.metric is correct
            else getattr(self.metric, "__name__", type(self.metric).__name__).lower()
        )

    def loss(self, batch: Any, output: Any) -> Tensor:
        return self.criterion(output, target_of(batch))

    @classmethod
    def named(cls, criterion: str | None, forward: str | None, metric: str | None) -> Task:
        """A task from `package.module:name` references. A class is instantiated. Raises UsageError as `resolve`."""
        given = {"criterion": criterion, "forward": forward, "metric": metric}
        found: dict[str, Any] = {name: resolve(path, name) for name, path in given.items() if path is not None}
        return cls(**{name: _made(each) for name, each in found.items()})


def _made(found: Any) -> Any:
    return found() if inspect.isclass(found) else found
