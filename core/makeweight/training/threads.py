"""The number of CPU threads for training."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..models.modes import evaluating
from ..task import Task

LIGHT = 200_000_000
"""one thread is used if the forward pass of a step takes fewer floating-point operations"""


MOST_THREADS = 1 << 12
"""maximum number of threads that a checkpoint may set"""


def settle_threads(
    model: nn.Module, batch: Any, micro_batches: int, task: Task, accelerator: Accelerator, given: int | None = None
) -> None:
    """Set the number of threads to `given`; by default to one for a small network, unless OMP_NUM_THREADS is set.

    With two threads, such a step was 25% faster on an idle machine, but ten times slower when another process needed a
    core, since OpenMP threads busy-wait. The default depends only on the network and the batch: the number of threads
    changes the order of summation, and a repeated run must give bitwise equal results.
    """
    if given is not None:
        use_threads(accelerator, given)
        return
    if accelerator.device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    with torch.random.fork_rng(), torch.no_grad(), evaluating(model), FlopCounterMode(display=False) as counter:
        task.forward(model, batch)
    if counter.get_total_flops() * micro_batches < LIGHT:
        torch.set_num_threads(1)


def threads_of(accelerator: Accelerator) -> int:
    """The number of threads that affects results: torch's number on the CPU, 0 on other devices."""
    return torch.get_num_threads() if accelerator.device.type == "cpu" else 0


def use_threads(accelerator: Accelerator, count: int) -> bool:
    """Set the number of threads, unless `count` is 0 or the device is not the CPU. Returns whether it changed."""
    changes = count > 0 and accelerator.device.type == "cpu" and count != torch.get_num_threads()
    if changes:
        torch.set_num_threads(count)
    return changes
