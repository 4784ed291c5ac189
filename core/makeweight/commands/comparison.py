"""Ways to run an export, measured: metric, multiply-accumulates and latency, beside the model in plain float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..data.batches import Batches
from ..task import Task
from ..training.evaluation import evaluate
from .latency import Latency, latencies, times_as_fast

SIZES = (500, 1, 32)
"""examples in a batch: for the metrics, and for the latencies"""
DIFFERENT = 64
"""batches at most over which a way that stops early for easy examples is timed"""


@dataclass
class Measured:
    """What was measured of one way to run a model."""

    name: str
    metrics: dict[str, float] = field(default_factory=dict)
    multiply_accumulates: float = 0.0
    """the mean over the examples; 0 where they cannot be counted"""
    latency: dict[int, Latency] = field(default_factory=dict)
    """by batch size"""
    times_as_fast: dict[int, float] = field(default_factory=dict)
    """as the plain model, by batch size"""


def compare(
    plain: nn.Module, ways: Mapping[str, nn.Module], data: Mapping[int, Batches], task: Task, accelerator: Accelerator
) -> list[Measured]:
    """Measure each way on all of the data, and time it beside `plain`, which gives the first row, with no metrics.

    `data` holds the same examples in batches of several sizes: the first is evaluated, the others are timed.
    """
    device = accelerator.device
    models = {"plain float32": plain.to(device).eval()} | {name: way.to(device).eval() for name, way in ways.items()}
    rows = {name: Measured(name) for name in models}
    whole, *timed = data.values()
    for name in ways:
        with FlopCounterMode(display=False) as counter:
            rows[name].metrics = evaluate(models[name], whole, task, accelerator)
        rows[name].multiply_accumulates = counter.get_total_flops() / 2 / whole.examples
    for batches in timed:
        calls = [_call(model, task, accelerator) for model in models.values()]
        times = latencies(calls, list(islice(batches.in_order(), DIFFERENT)), device)
        for row, seconds in zip(rows.values(), times, strict=True):
            row.latency[batches.batch_size] = Latency.of(seconds)
            row.times_as_fast[batches.batch_size] = times_as_fast(seconds, times[0])
    return list(rows.values())


def _call(model: nn.Module, task: Task, accelerator: Accelerator) -> Callable[[Any], None]:
    def call(batch: Any) -> None:
        with torch.inference_mode(), accelerator.autocast():
            task.forward(model, batch)

    return call
