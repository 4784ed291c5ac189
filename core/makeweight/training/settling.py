"""Settles the task of a model before training: the loss by the targets, the alignment of labels, and checks of both."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria import Criterion, check_labels, choose_criterion, default_criterion
from ..data.batches import Batches
from ..data.targets import find_targets
from ..errors import UsageError
from ..metrics import check_values, measures_whole_set
from ..models.modes import evaluating
from ..outputs import IGNORED, class_dimension, described, has_classes, has_logits, logits_of, own_loss, target_of
from ..task import Task
from .alignment import shifts_labels

CLASS_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss)
PROBES = 3
"""random outputs on which a loss of 0 is computed again"""


def settle(task: Task, model: nn.Module, batch: Any, data: Mapping[str, Any]) -> None:
    """Choose the default loss, find out whether labels are shifted, and check loss, labels and metrics; once per task.

    `batch` holds training examples, and `data` the data sets by name; all targets that lie in memory are checked.
    Raises UsageError for targets that do not fit the model's output, and for a loss or metric that cannot be right.
    """
    if task.is_settled:
        return
    with torch.random.fork_rng(), evaluating(model), torch.enable_grad():
        output, target = task.forward(model, batch), target_of(batch)
        task.shifts_labels = shifts_labels(task, model, batch, output)
        known = {name: found for name, each in data.items() if (found := find_targets(each)) is not None}
        if task.criterion is default_criterion and own_loss(output) is None:
            task.criterion = _chosen(task, output, target, known)
        _check_labels(task, output, target, known)
        _check_loss(task, model, batch, output)
        with torch.no_grad():
            _check_metrics(task, batch, output)
    task.is_settled = True


def settle_on(task: Task, model: nn.Module, batches: Batches) -> None:
    """Settle a task that is not settled yet on the data that a model is evaluated on."""
    if not task.is_settled:
        settle(task, model, batches.samples(1)[0], {"the data": batches.data})


def _chosen(task: Task, output: Any, target: Any, known: Mapping[str, Tensor]) -> Criterion:
    if not has_logits(output):
        names = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        given = f"the model returns a {type(output).__name__}{names}"
        raise UsageError(f"{given}: expected a tensor or logits; choose with --forward or --criterion")
    if not isinstance(target, Tensor):
        given = "no labels" if isinstance(target, Mapping) else f"targets of type {type(target).__name__}"
        raise UsageError(f"the data has {given}: expected a tensor of targets, or another loss with --criterion")
    seen = next(iter(known.values()), target)
    return choose_criterion(output, target, seen if seen.ndim == target.ndim else target)


def _check_labels(task: Task, output: Any, target: Any, known: Mapping[str, Tensor]) -> None:
    """Raise UsageError for class indices outside the model's classes, where the loss is known to take class indices."""
    criterion = task.criterion
    if not (criterion is default_criterion or isinstance(criterion, CLASS_LOSSES)) or not has_classes(output, target):
        return
    task.classes = logits_of(output).shape[class_dimension(output)]
    for name, labels in {"the first batch": target, **known}.items():
        check_known(task, labels, name)


def check_known(task: Task, labels: Tensor | None, where: str) -> None:
    """Raise UsageError if labels of a settled task are not classes of the model. `where` names their data set."""
    if labels is not None and task.classes is not None and not labels.is_floating_point():
        check_labels(labels, task.classes, where, getattr(task.criterion, "ignore_index", IGNORED))


def _check_loss(task: Task, model: nn.Module, batch: Any, output: Any) -> None:
    """Raise UsageError unless the loss is a scalar that depends on the outputs and on parameters."""
    criterion = task.criterion
    name = getattr(criterion, "__name__", type(criterion).__name__)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size", UserWarning)
            loss = task.loss(batch, output)
    except (RuntimeError, TypeError, ValueError, IndexError, UserWarning) as error:
        if type(criterion).__module__.startswith("torch.nn"):
            shown = [described(each) for each in (logits_of(output), target_of(batch))]
            reason = str(error).splitlines()[0]
            raise UsageError(f"criterion {name}: outputs {shown[0]} and targets {shown[1]}: {reason}") from error
        raise
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise UsageError(f"criterion {name} gives {described(loss)}: expected a scalar tensor")
    trained = any(parameter.requires_grad for parameter in model.parameters())
    if trained and not loss.requires_grad:
        raise UsageError(f"criterion {name}: the loss does not depend on the parameters of the model")
    if float(loss.detach()) == 0 and _is_always_zero(task, batch, output):
        raise UsageError(f"criterion {name}: the loss is 0 for every output of shape {list(logits_of(output).shape)}")


def _is_always_zero(task: Task, batch: Any, output: Any) -> bool:
    if not isinstance(output, Tensor):
        return False
    generator = torch.Generator().manual_seed(0)
    for _ in range(PROBES):
        noise = torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
        if float(task.loss(batch, noise).detach()) != 0:
            return False
    return True


def _check_metrics(task: Task, batch: Any, output: Any) -> None:
    """Raise UsageError if a metric function does not give one value for each example of the batch."""
    output, target = task.aligned(output, batch)
    for name, metric in task.metrics.items():
        if hasattr(metric, "sums"):
            metric.sums(output, target)
        elif not measures_whole_set(metric) and (values := metric(output, target)) is not None:
            check_values(name, values, _examples(target, output))


def _examples(target: Any, output: Any) -> int:
    return len(target) if isinstance(target, Tensor) else len(logits_of(output))
