"""The task of a network: how the model is called on a batch, the loss, and the metrics."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from . import metrics
from .criteria import default_criterion
from .errors import UsageError
from .metrics import correct
from .outputs import call_model, logits_of, shifted, target_of
from .references import resolve

__all__ = ["Task", "call_model", "correct", "default_criterion", "logits_of", "target_of"]

TORCH = "torch.nn."
"""prefix of a loss class of torch, which may be named without a colon"""


@dataclass
class Task:
    """Loss function, call of the model, and metrics.

    `criterion(output, target)` returns a scalar and `forward(model, batch)` the model's output. `metric` is one metric
    or a list of them: a function of (output, target) that returns a value for each example, [B], or None if it does not
    apply; a class with `update(logits, target)` and `compute()`; or a name. `metrics` holds them by name. Before
    training the core chooses the default loss by the targets, and finds out whether the model shifts its labels; then
    the criterion and the metrics receive logits and targets that are aligned.
    """

    criterion: Callable[[Any, Any], Tensor] = default_criterion
    forward: Callable[[nn.Module, Any], Any] = call_model
    metric: Any = correct
    metrics: dict[str, Any] = field(init=False)
    shifts_labels: bool = field(default=False, init=False)
    """whether the model predicts the next token, so that its loss uses labels shifted by one position"""
    classes: int | None = field(default=None, init=False)
    """number of classes of the model's outputs, if the targets are class indices"""
    is_settled: bool = field(default=False, init=False)
    """whether the loss and the alignment of the labels have been chosen for a model and its data"""

    def __post_init__(self) -> None:
        self.metrics = metrics.by_name(self.metric)

    @classmethod
    def own(cls, task: Task | None) -> Task:
        """A copy of a task, which can be settled for other data than the task itself; by default a new one."""
        return cls() if task is None else copy.copy(task)

    @property
    def metric_name(self) -> str:
        """The name of the first metric, the one in tables."""
        return next(iter(self.metrics))

    def higher_is_better(self, name: str | None = None) -> bool:
        """Whether a higher value of the metric `name`, by default the first one, is better. False for `loss`."""
        name = self.metric_name if name is None else name
        return metrics.higher_is_better(name, self.metrics.get(name))

    def described(self) -> str:
        """The loss and the metrics in a line, for `--dry-run`."""
        loss = getattr(self.criterion, "__name__", type(self.criterion).__name__).replace("_", " ")
        if self.criterion is default_criterion:
            loss = "cross entropy, or that of the model"
        better = [f"{name} ({'higher' if self.higher_is_better(name) else 'lower'} is better)" for name in self.metrics]
        shift = "; labels are those of the next token" if self.shifts_labels else ""
        return f"loss: {loss}{shift}; metrics: {', '.join(better)}"

    def aligned(self, output: Any, batch: Any) -> tuple[Any, Any]:
        """The output and the target of a batch, aligned by position if the model shifts its labels."""
        target = target_of(batch)
        return shifted(output, target) if self.shifts_labels else (output, target)

    def loss(self, batch: Any, output: Any) -> Tensor:
        return self.criterion(*self.aligned(output, batch))

    @classmethod
    def named(cls, criterion: str | None, forward: str | None, metric: str | list[str] | None) -> Task:
        """A task from `package.module:name` references. A class is instantiated. Raises UsageError as `resolve`.

        `criterion` may also be a loss class of torch, `torch.nn.MSELoss`, and `metric` several names: `accuracy,mse`.
        """
        found: dict[str, Any] = {}
        if criterion is not None:
            found["criterion"] = _criterion(criterion)
        if forward is not None:
            found["forward"] = _made(resolve(forward, "forward"), "forward")
        if metric is not None:
            names = metric.split(",") if isinstance(metric, str) else metric
            found["metric"] = [name.strip() for name in names if name.strip()]
        return cls(**found)


def _criterion(given: str) -> Any:
    if given.startswith(TORCH) and ":" not in given:
        given = f"torch.nn:{given.removeprefix(TORCH)}"
    return _made(resolve(given, "criterion"), "criterion")


def _made(found: Any, what: str) -> Any:
    if not inspect.isclass(found):
        return found
    try:
        return found()
    except TypeError as error:
        raise UsageError(
            f"{what} {found.__name__}: {error}: expected a class without arguments, or a function"
        ) from error
