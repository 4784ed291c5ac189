"""How many threads a light network is trained with on a CPU."""

from __future__ import annotations

import os

import torch
from torch.utils.flop_counter import FlopCounterMode

from .trainer import Trainer

LIGHT = 200_000_000
"""floating-point operations in the forward pass of a step below which one thread does it"""


def settle_threads(trainer: Trainer) -> None:
    """Let one thread train a network whose steps are light, unless OMP_NUM_THREADS says how many.

    Two threads made such a step a quarter faster on an idle machine, and ten times slower on one where another
    process wanted a core: OpenMP's threads wait for each other spinning. The choice follows from the network and the
    batch alone, since other threads add up in another order and a resumed run has to repeat the bits.
    """
    if trainer.accelerator.device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    model, batch = trainer.model, trainer.sample_batch()
    training = model.training
    with torch.random.fork_rng(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        trainer.task.forward(model.eval(), batch)
    model.train(training)
    if counter.get_total_flops() * trainer.options.accumulate < LIGHT:
        torch.set_num_threads(1)
