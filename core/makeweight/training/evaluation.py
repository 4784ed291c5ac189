"""Evaluates a model on a data set; over all processes, every example counts once."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32, find_batch_size
from torch import nn

from ..data.batches import Batches
from ..models.modes import evaluating
from ..task import Task, target_of


def evaluate(
    model: nn.Module, batches: Batches, task: Task, accelerator: Accelerator | None = None
) -> dict[str, float]:
    """The mean metric and loss of the task over the examples of `batches`.

    With an accelerator, the precision is that of training and the result is reduced over all processes.
    """
    sums = torch.zeros(3, dtype=torch.float64)  # metric, loss, examples
    measured = True
    with evaluating(model), torch.no_grad():
        for batch in batches.in_order():
            with accelerator.autocast() if accelerator else nullcontext():
                output = convert_outputs_to_fp32(task.forward)(model, batch)
            values = task.metric(output, target_of(batch))
            measured = measured and values is not None
            examples = find_batch_size(batch)
            total = 0.0 if values is None else float(values.sum())
            sums += torch.tensor([total, float(task.loss(batch, output)) * examples, examples], dtype=sums.dtype)
    if accelerator is not None and batches.processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), "sum")
    metric, loss, examples = sums.tolist()
    return ({task.metric_name: metric / examples} if measured else {}) | {"loss": loss / examples}
