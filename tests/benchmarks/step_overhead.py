"""Time per training step over a bare torch loop, LeNet-300-100 at batch 2: what is left is the loop itself.

Every round runs each contestant once, in turn, in this one process with one thread; a figure is the median over the
rounds. The bare loop has the same optimizer flags, seeding and data access. Run it with `make bench`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from makeweight.discovery import load_class
from makeweight.models.lenets import LeNet300
from makeweight.options import StageOptions
from makeweight.seeding import StepSeed
from makeweight.trainer import Trainer
from makeweight.training.optimizers import build_optimizer, parameter_groups

STEPS, BATCH = 250, 2


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(STEPS * BATCH, 1, 28, 28, generator=generator)
    return pixels, torch.randint(0, 10, (STEPS * BATCH,), generator=generator)


def model() -> LeNet300:
    torch.manual_seed(0)
    return LeNet300((1, 28, 28), 10)


def bare(accelerate: bool = False) -> float:
    """Microseconds a step of a plain loop, or of one written as Accelerate's documentation does."""
    network, (pixels, labels) = model(), data()
    options = StageOptions()
    optimizer = build_optimizer(parameter_groups(dict(network.named_parameters()), [], options.weight_decay), options)
    accelerator = Accelerator() if accelerate else None
    if accelerator:
        network, optimizer = accelerator.prepare(network, optimizer)
    seed = StepSeed(torch.device("cpu"))
    start = perf_counter()
    order = torch.randperm(len(labels)).view(STEPS, BATCH)
    for step, indices in enumerate(order):
        seed(0, step, 0)
        batch, target = pixels.index_select(0, indices), labels.index_select(0, indices)
        optimizer.zero_grad()
        loss = cross_entropy(network(batch), target)
        accelerator.backward(loss) if accelerator else loss.backward()
        optimizer.step()
    return (perf_counter() - start) / STEPS * 1e6


def ours(**plugins: dict[str, Any]) -> float:
    """Microseconds a step of one epoch of the trainer, as it measures them itself."""
    instances = {name: load_class(name)(**options) for name, options in plugins.items()}
    trainer = Trainer(model(), data(), plugins=instances, batch_size=BATCH, epochs=1)
    trainer.journal.console.quiet = True
    return trainer.fit()["seconds"] / STEPS * 1e6


def compare(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The contestants' figures, one a round, run in turn; a first round warms up and is thrown away."""
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, contestant in contestants.items():
            figure = contestant()
            if number:
                figures[name].append(figure)
    return figures


def main(rounds: int = 15) -> None:
    torch.set_num_threads(1)
    figures = compare(
        {
            "bare torch loop": bare,
            "plain Accelerate": lambda: bare(accelerate=True),
            "makeweight": ours,
            "makeweight, prune": lambda: ours(prune={"sparsity": 0.9, "schedule": "one-shot"}),
        },
        rounds,
    )
    base = statistics.median(figures["bare torch loop"])
    print(f"{'':28} {'µs a step':>10} {'over bare':>10} {'ratio':>6}   (medians of {rounds} rounds of {STEPS} steps)")
    for name, values in figures.items():
        median = statistics.median(values)
        over = statistics.median(value - bare for value, bare in zip(values, figures["bare torch loop"], strict=True))
        print(f"{name:28} {median:10.1f} {over:+10.1f} {median / base:6.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
