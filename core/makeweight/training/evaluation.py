"""Evaluates a model on a data set; over all processes, every example counts once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from torch import nn

from ..data.batches import Batches
from ..errors import MakeweightError
from ..metrics import check_values, measures_whole_set
from ..models.modes import evaluating
from ..task import Task
from .settling import settle_on
from .whole_set import WholeSet


def evaluate(
    model: nn.Module, batches: Batches, task: Task, accelerator: Accelerator | None = None, also: Sequence[Any] = ()
) -> dict[str, float]:
    """The metrics of the task and its mean loss over the examples of `batches`, in the order of `task.metrics`.

    With an accelerator, the precision is that of training and the result is over all processes. Objects in `also` have
    a method `update(output, target)`, called for every batch of this process. Raises MakeweightError for a metric that
    is not finite although the loss is.
    """
    settle_on(task, model, batches)
    whole = {name: each for name, each in task.metrics.items() if measures_whole_set(each)}
    summed = Summed({name: each for name, each in task.metrics.items() if name not in whole})
    meters = WholeSet(whole, batches.device, batches.processes, batches.local)
    counted = batches.counted()
    with evaluating(model), torch.no_grad():
        for _ in range(batches.rounds):
            batch, examples = next(counted, (None, 0))
            if examples == 0:  # another process has one more batch, which `meters` gathers
                meters.update(None, None, 0)
                continue
            with accelerator.autocast() if accelerator else nullcontext():
                output = convert_outputs_to_fp32(task.forward)(model, batch)
            aligned = task.aligned(output, batch)
            summed.add(*aligned, float(task.loss(batch, output)), examples)
            meters.update(*aligned, examples)
            for each in also:
                each.update(*aligned)
    found = summed.values(accelerator if batches.processes > 1 else None) | meters.compute()
    for name, value in found.items():
        if not math.isfinite(value) and math.isfinite(found["loss"]):
            raise MakeweightError(
                f"metric {name} is {value} over {batches.examples} examples: expected a finite number; the loss is "
                f"{found['loss']:.5g}"
            )
    return {name: found[name] for name in [*task.metrics, "loss"] if name in found}


class Summed:
    """Sums of the loss and of metrics with a value per example, in double precision."""

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        self.metrics = metrics
        # for each metric its total, its count, and the batches to which it does not apply; then loss and examples
        self.sums = torch.zeros(3 * len(metrics) + 2, dtype=torch.float64)

    def add(self, output: Any, target: Any, loss: float, examples: int) -> None:
        """Add a batch; `loss` is its mean loss."""
        row: list[float] = []
        for name, metric in self.metrics.items():
            if hasattr(metric, "sums"):
                row += [*metric.sums(output, target), 0]
            elif (values := metric(output, target)) is None:
                row += [0, examples, 1]
            else:
                row += [float(check_values(name, values, examples).sum()), examples, 0]
        self.sums += torch.tensor([*row, loss * examples, examples], dtype=self.sums.dtype)

    def values(self, accelerator: Accelerator | None) -> dict[str, float]:
        """The metrics that apply and the mean loss, over all processes if an accelerator is given."""
        if accelerator is not None:
            self.sums = accelerator.reduce(self.sums.to(accelerator.device), "sum")
        *sums, loss, examples = self.sums.tolist()
        values = {}
        for number, (name, metric) in enumerate(self.metrics.items()):
            total, count, absent = sums[3 * number : 3 * number + 3]
            if absent == 0:
                values[name] = metric.value(total, count) if hasattr(metric, "value") else total / count
        return values | {"loss": loss / examples}
