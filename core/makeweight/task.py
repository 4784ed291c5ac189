"""What a batch means: how the model is called on it, its loss, and what is measured on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .references import resolve


def call_model(model: nn.Module, batch: Any) -> Any:
    """`model(x)` for a batch (x, y), `model(**batch)` for a mapping, as Hugging Face's models are called."""
    return model(batch[0]) if isinstance(batch, (list, tuple)) else model(**batch)


def target_of(batch: Any) -> Any:
    """Y of (x, y); the `labels` of a mapping, or the whole mapping where it has none."""
    return batch[1] if isinstance(batch, (list, tuple)) else batch.get("labels", batch)


def logits_of(output: Any) -> Any:
    """The logits of a model's output, whether it is a tensor or an object that has them."""
    if isinstance(output, Mapping):
        return output["logits"]
    return getattr(output, "logits", output)


def correct(output: Any, target: Any) -> Tensor | None:
    """For each example whether the largest logit is the target's (the share of pixels or tokens where there are many).

    Classes are the second dimension of a tensor of logits, and the last one of an object that has logits, as Hugging
    Face's have; targets of -100 do not count. Returns [B], None where the targets are no classes.
    """
    logits = logits_of(output)
    if not isinstance(target, Tensor) or target.is_floating_point() or logits.ndim != target.ndim + 1:
        return None
    right = (logits.argmax(1 if logits is output else -1) == target).float().reshape(len(target), -1)
    counted = (target != -100).reshape(len(target), -1)
    return (right * counted).sum(1) / counted.sum(1).clamp(min=1)


def default_criterion(output: Any, target: Any) -> Tensor:
    """The loss that the model itself returned, where it does; else cross entropy."""
    if isinstance(output, Tensor):
        return cross_entropy(output, target)
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return cross_entropy(logits_of(output), target) if own is None else own


@dataclass
class Task:
    """The user's own loss, call and metric, or the usual ones. A metric gives a value for each example, [B]."""

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
        """From `package.module:function` options; a torch.nn loss class is instantiated. Raises UsageError."""
        given = {"criterion": criterion, "forward": forward, "metric": metric}
        found: dict[str, Any] = {name: resolve(path, name) for name, path in given.items() if path is not None}
        return cls(**{name: _made(each) for name, each in found.items()})


def _made(found: Any) -> Any:
    return found() if inspect.isclass(found) else found
