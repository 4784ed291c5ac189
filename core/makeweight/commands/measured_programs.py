"""Measures programs with their own runtimes: size, metrics, agreement with the trained model, and latency."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from ..data.batches import Batches
from ..files.run_onnx import OnnxModel
from ..models.modes import evaluating
from ..task import Task, logits_of, target_of
from ..training.evaluation import evaluate
from .latency import Latency, latencies, times_as_fast
from .session import Session

TIMED = 32
"""number of examples for the measurement of latency, one at a time"""
SECONDS = 0.5
"""seconds for the measurement of each model's latency"""


class ExportedModel(nn.Module):
    """A module that runs a program of torch.export with the call signature of the original model."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.calls: list[Callable[..., Any]] = [torch.export.load(path).module()]  # in a list: has no eval()

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        device = next(iter([*inputs, *named.values()])).device
        arguments, others = send_to_device((inputs, named), "cpu")
        others.pop("labels", None)
        output = self.calls[0](*arguments, **others)
        return send_to_device({"logits": output} if named and isinstance(output, Tensor) else output, device)


def load_program(path: Path) -> nn.Module:
    """A module that runs a program of this run. Raises MakeweightError if the file cannot be read."""
    return OnnxModel(path) if path.suffix == ".onnx" else ExportedModel(path)


def measure_program(path: Path, session: Session, model: nn.Module, test: Batches) -> dict[str, Any]:
    """The entry of a program in summary.json: `bytes`, the metrics, `agreement`, and the latency of one example.

    `times_as_fast` is the speed-up over `model`, the trained model. Both are timed alternately in the same process.
    """
    program = load_program(path)
    facts: dict[str, Any] = {"bytes": path.stat().st_size}
    facts |= evaluate(program, test, session.task, session.accelerator)
    if (share := agreement(model, program, test, session.task)) is not None:
        facts["agreement"] = share
    examples = islice(session.batches(session.data.test, 1).in_order(), TIMED)
    one = [send_to_device(batch, "cpu") for batch in examples]  # programs run on the CPU
    model = model.to("cpu")
    with torch.inference_mode(), evaluating(model):
        calls = [partial(session.task.forward, each) for each in (model, program)]
        reference, seconds = latencies(calls, one, torch.device("cpu"), SECONDS)
    facts["milliseconds"] = round(1e3 * Latency.of(seconds).median, 4)
    facts["times_as_fast"] = round(times_as_fast(seconds, reference), 3)
    return facts


def agreement(model: nn.Module, program: nn.Module, batches: Batches, task: Task) -> float | None:
    """The fraction of examples (pixels, tokens) for which both predict the same class; None without classes."""
    same = total = 0
    with torch.inference_mode(), evaluating(model):
        for batch in batches.in_order():
            outputs = [task.forward(each, batch) for each in (model, program)]
            logits = [logits_of(output) for output in outputs]
            target = target_of(batch)
            if not isinstance(target, Tensor) or target.is_floating_point() or logits[0].ndim != target.ndim + 1:
                return None
            axis = 1 if isinstance(outputs[0], Tensor) else -1
            equal = logits[0].argmax(axis) == logits[1].argmax(axis)
            same, total = same + int(equal.sum()), total + equal.numel()
    return same / total if total else None
