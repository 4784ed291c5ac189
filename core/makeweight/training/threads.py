"""How many threads a light network is trained with on a CPU."""

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
"""floating-point operations in the forward pass of a step below which one thread does it"""


MOST_THREADS = 1 << 12
"""threads that a checkpoint may ask for at most"""


def settle_threads(
    model: nn.Module, batch: Any, micro_batches: int, task: Task, accelerator: Accelerator, given: int | None = None
) -> None:
    """Use the number of threads that is given; else one for a network whose steps are light, unless OMP_NUM_THREADS
    says how many.

    Two threads made such a step a quarter faster on an idle machine, and ten times slower on one where another
    process wanted a core: OpenMP's threads wait for each other spinning. The choice follows from the network and the
    batch alone, since other threads add up in another order and a repeated run has to repeat the bits.
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
    """The number of threads that training's sums depend on: torch's on the CPU, 0 on another device."""
    return torch.get_num_threads() if accelerator.device.type == "cpu" else 0


def use_threads(accelerator: Accelerator, count: int) -> bool:
    """Train with so many threads; whether that is another number. 0, or another device than the CPU: as it is."""
    changes = count > 0 and accelerator.device.type == "cpu" and count != torch.get_num_threads()
    if changes:
        torch.set_num_threads(count)
    return changes
