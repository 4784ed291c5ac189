"""Measures variants of a model: metrics, multiply-accumulates, and latency relative to the plain float32 model."""

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
from ..training.settling import settle_on
from .latency import Latency, latencies, times_as_fast

SIZES = (500, 1, 32)
"""batch sizes: the first for metrics, the others for latency"""
DIFFERENT = 64
"""maximum number of different batches for latency; with early exits it depends on the examples"""


@dataclass
class Measured:
    """The measurements of one variant of a model."""

    name: str
    metrics: dict[str, float] = field(default_factory=dict)
    multiply_accumulates: float = 0.0
    """mean per example; 0 if it cannot be counted"""
    latency: dict[int, Latency] = field(default_factory=dict)
    """latency by batch size"""
    times_as_fast: dict[int, float] = field(default_factory=dict)
    """speed-up over the plain model, by batch size"""


def compare(
    plain: nn.Module, ways: Mapping[str, nn.Module], data: Mapping[int, Batches], task: Task, accelerator: Accelerator
) -> list[Measured]:
    """Evaluate each variant in `ways` on all data, and measure its latency alternately with `plain`.

    `data` maps batch sizes to batches of the same examples: the first is used for metrics, the others for latency.
    Returns one row per model; the first one is `plain`, without metrics.
    """
    device = accelerator.device
    models = {"plain float32": plain.to(device).eval()} | {name: way.to(device).eval() for name, way in ways.items()}
    rows = {name: Measured(name) for name in models}
    whole, *timed = data.values()
    settle_on(task, models["plain float32"], whole)
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
