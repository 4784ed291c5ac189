"""What a checkpoint holds of a trainer, and how it is put back. Nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from . import checkpoint
from .errors import MakeweightError
from .optimizers import checked_state
from .state import restore
from .step import Sum

if TYPE_CHECKING:
    from .trainer import Trainer

PARTS = ("trainer", "sums", "model", "auxiliary", "optimizer", "scaler", "plugins")
COUNTERS = ("step", "stage_number", "epoch", "position", "epochs_begun", "stage_steps")


def take(trainer: Trainer) -> dict[str, Any]:
    """The parts of a checkpoint. Every process must ask at the same time: each adds its share of the losses."""
    plugins, scaler = trainer.plugins.by_name, trainer.accelerator.scaler
    return {
        "trainer": {name: getattr(trainer, name) for name in (*COUNTERS, "stopped", "metrics")},
        "sums": _shares(trainer),
        "model": trainer.model.state_dict(),
        "auxiliary": trainer.auxiliary.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else {},
        "plugins": {name: plugin.state_dict() for name, plugin in plugins.items() if hasattr(plugin, "state_dict")},
    }


def newest(trainer: Trainer) -> dict[str, Any] | None:
    """The newest valid checkpoint of the run directory, None where there is none.

    Raises MakeweightError for one without all parts, and where processes of several machines see different ones.
    """
    assert trainer.out is not None
    saved = checkpoint.newest(trainer.out / "checkpoints", trainer.journal.warn)
    if saved is not None:
        for name in PARTS:
            if not isinstance(saved.get(name), dict):
                raise MakeweightError(
                    f"checkpoint in {trainer.out} is damaged: its part {name!r} is missing or no table"
                )
    with fits(trainer, "trainer"):
        step = -1 if saved is None else int(saved["trainer"]["step"])
        here = torch.tensor([step], device=trainer.accelerator.device)
    steps = trainer.accelerator.gather(here).unique().tolist()
    if len(steps) > 1:
        raise MakeweightError(f"{trainer.out}: processes see checkpoints of steps {steps}: it must be on a shared disk")
    return saved


def put_back(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Weights and counters of a checkpoint; the optimizer's state waits for the stage to begin."""
    with fits(trainer, "model"):
        restore(trainer.model, saved["model"], f"checkpoint in {trainer.out}")
        restore(trainer.auxiliary, saved["auxiliary"], f"checkpoint in {trainer.out}")
    with fits(trainer, "trainer"):
        for counter in COUNTERS:
            value = int(saved["trainer"][counter])
            if not 0 <= value < 1 << 53:
                raise ValueError(f"{counter} is {value}")
            setattr(trainer, counter, value)
        if trainer.position > trainer.steps_per_epoch:
            raise ValueError(f"step {trainer.position} of an epoch of {trainer.steps_per_epoch}")
        trainer.stopped, trainer.metrics = saved["trainer"]["stopped"], dict(saved["trainer"]["metrics"])
        processes, mine = trainer.accelerator.num_processes, trainer.accelerator.process_index
        for name, shares in saved["sums"].items():
            share = shares[mine] if len(shares) == processes else sum(shares) / len(shares)
            trainer.sums[name] = Sum(float(share))


def put_back_optimizer(trainer: Trainer, saved: dict[str, Any]) -> None:
    """The state of the optimizer and of the gradient scaler."""
    with fits(trainer, "optimizer"):
        trainer.optimizer.load_state_dict(checked_state(trainer.optimizer, saved["optimizer"]))
        if trainer.accelerator.scaler is not None and saved["scaler"]:
            trainer.accelerator.scaler.load_state_dict(saved["scaler"])


@contextmanager
def fits(trainer: Trainer, part: str) -> Iterator[None]:
    """Turn what goes wrong with a part of a checkpoint into a MakeweightError that names it."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise MakeweightError(f"checkpoint in {trainer.out} does not fit this run's {part}: {reason}") from error


def _shares(trainer: Trainer) -> dict[str, list[float]]:
    """The sums of the losses so far of each process: they go on from their own when training is resumed."""
    if not trainer.sums:
        return {}
    local = torch.tensor([[float(total) for total in trainer.sums.values()]], dtype=torch.float64)
    if trainer.accelerator.num_processes > 1:
        local = trainer.accelerator.gather(local.to(trainer.accelerator.device)).cpu()  # [processes, losses]
    return dict(zip(trainer.sums, local.T.tolist(), strict=True))
