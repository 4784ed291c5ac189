"""Captures the state of a trainer for a checkpoint, and restores it. Checkpoints are untrusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import MakeweightError, UsageError
from ..files.checked import MOST, checked_count, checked_keys, checked_number, checked_table, checked_tensors
from ..models.freezing import freeze
from ..models.records import as_json, read_records, records_of
from ..models.state import attached_state, plain_state, restore, whole_state
from ..models.structure import build, check_records, pending
from . import checkpoint
from .distributed import agree
from .optimizers import checked_state
from .start import Start
from .step import Sum
from .threads import MOST_THREADS, threads_of, use_threads

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..trainer import Trainer
    from .journal import Journal

PARTS = (
    "trainer",
    "sums",
    "structure",
    "model",
    "attached",
    "began",
    "auxiliary",
    "masks",
    "optimizer",
    "scaler",
    "plugins",
)
COUNTERS = {"step": MOST, "stage": MOST, "epoch": MOST, "position": MOST, "epochs_begun": MOST, "stage_steps": MOST,
            "ended": 1}  # fmt: skip
"""counters of a trainer with their maxima"""


def take(trainer: Trainer) -> dict[str, Any]:
    """The parts of a checkpoint. Collective: every process must call it, as each adds its own sums of losses."""
    scaler = trainer.accelerator.scaler
    return {
        "trainer": {name: int(getattr(trainer, name)) for name in COUNTERS}
        | {"stopped": trainer.stopped, "metrics": trainer.metrics, "threads": threads_of(trainer.accelerator)},
        "sums": _shares(trainer),
        "structure": {"records": as_json(records_of(trainer.model)), "began_with": trainer.began_with},
        "model": plain_state(trainer.model),
        "attached": attached_state(trainer.model),
        "began": (trainer.began or {}) if trainer.keeps_initial else {},
        "auxiliary": auxiliary_of(trainer),
        "masks": trainer.masks.state(),
        "optimizer": {} if trainer.ended else trainer.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else {},
        "plugins": states_of(trainer),
    }


def states_of(trainer: Trainer) -> dict[str, Any]:
    """The `state_dict` of each plugin that has one, as read from a checkpoint, and unused states of earlier stages."""
    plugins = trainer.plugins.by_name
    states: dict[str, Any] = {
        name: plugin.state_dict() for name, plugin in plugins.items() if hasattr(plugin, "state_dict")
    }
    copied: dict[str, Any] = checkpoint.copied(states)
    return trainer.left_states | copied


def auxiliary_of(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """The weights of the auxiliary modules of this stage, and the unused ones of earlier stages, by name."""
    present = {name: module.state_dict() for name, module in trainer.auxiliary.items()}
    return trainer.left_auxiliary | present


def newest(out: Path | None, journal: Journal, accelerator: Accelerator) -> dict[str, Any] | None:
    """The parts of the newest intact checkpoint of a run directory, or None if there is no checkpoint.

    Raises MakeweightError if a part is missing, or if processes on several machines find different checkpoints.
    """
    if out is None:
        return None
    saved = checkpoint.newest(out / "checkpoints", journal.warn)
    if saved is not None:
        for name in PARTS:
            if not isinstance(saved.get(name), dict):
                raise MakeweightError(f"checkpoint in {out} is damaged: part {name!r} is missing or is not a table")
    with _explained(out, "trainer"):
        place = None
        if saved is not None:
            place = [checked_count(saved["trainer"], name, most) for name, most in COUNTERS.items()]
    same = agree(accelerator, place) == place
    different = torch.tensor(int(not same), device=accelerator.device)
    if int(accelerator.reduce(different, "sum")):
        raise MakeweightError(f"{out}: processes find different checkpoints: expected one on a shared disk")
    return saved


def start_of(saved: dict[str, Any]) -> Start:
    """The states of plugins, masks and auxiliary modules in a checkpoint. Raises ValueError unless they are tables."""
    masks, auxiliary = ({name: checked_tensors(saved[part], name) for name in saved[part]}
                        for part in ("masks", "auxiliary"))  # fmt: skip
    return Start(states=checked_table(saved, "plugins"), masks=masks, auxiliary=auxiliary)


def put_back_network(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Restore the structure and the weights of a checkpoint, before `on_init`.

    Raises MakeweightError if the checkpoint does not fit the run.
    """
    with fits(trainer, "trainer"):
        threads = checked_count(checked_table(saved, "trainer"), "threads", MOST_THREADS)
        if use_threads(trainer.accelerator, threads):
            trainer.journal.warn(f"using {threads} threads as in the checkpoint, so that the results are the same")
    with fits(trainer, "structure"):
        records = read_records(checked_table(saved, "structure")["records"])
        weights = checked_tensors(saved, "model")
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        if missing := pending(trainer.model, records):
            check_records(trainer.model, records, shapes, plugins=trainer.plugins)
        trainer.began_with = checked_count(saved["structure"], "began_with", len(records))
        freezing = [] if saved["trainer"]["ended"] else trainer.options.frozen
        for number, record in enumerate([*missing, None], len(records) - len(missing)):
            if number == trainer.began_with and freezing:  # the names are those of the start of the stage
                freeze(trainer.model, freezing)
            if record is not None:
                build(trainer.model, record, trainer.plugins)
        trainer.model.to(trainer.accelerator.device)
        restore(trainer.model, weights, f"checkpoint in {trainer.out}", exact=True)
        trainer.began = checked_tensors(saved, "began") or None
        if saved["trainer"]["ended"]:  # training is over: no plugin needs the initial weights
            trainer.began, trainer.began_with = dict(weights), len(records)
            trainer.ending = True
    with fits(trainer, "plugins"):
        stateful = [name for name, plugin in trainer.plugins.by_name.items() if hasattr(plugin, "state_dict")]
        if without := [name for name in stateful if name not in checked_table(saved, "plugins")]:
            raise ValueError(f"it has no state of plugin {without[0]!r}")


def put_back(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Restore weights including attachments, counters, and the states of the optimizer and the gradient scaler.

    Raises MakeweightError if the checkpoint does not fit the run.
    """
    with fits(trainer, "model"):
        state = whole_state(trainer.model, checked_tensors(saved, "model"), checked_tensors(saved, "attached"))
        restore(trainer.model, state, f"checkpoint in {trainer.out}", exact=True)
    with fits(trainer, "trainer"):
        table = checked_table(saved, "trainer")
        for counter, most in COUNTERS.items():
            setattr(trainer, counter, checked_count(table, counter, most))
        trainer.ended = bool(trainer.ended)
        if trainer.position > trainer.steps_per_epoch:
            raise ValueError(f"step {trainer.position} of an epoch of {trainer.steps_per_epoch}")
        if not isinstance(table.get("stopped"), str | None):
            raise ValueError("'stopped' is not a string")
        trainer.stopped = table.get("stopped")
        trainer.metrics = {name: _metric(value) for name, value in checked_table(table, "metrics").items()}
        processes, mine = trainer.accelerator.num_processes, trainer.accelerator.process_index
        for name, shares in checked_table(saved, "sums").items():
            if not isinstance(shares, list) or not shares:
                raise ValueError(f"the sums of {name!r} are not a list of one number per process")
            numbers = [checked_number({name: share}, name) for share in shares]
            share = numbers[mine] if len(numbers) == processes else sum(numbers) / len(numbers)
            trainer.sums[name] = Sum(share)
    if not trainer.ended:
        with fits(trainer, "optimizer"):
            trainer.optimizer.load_state_dict(checked_state(trainer.optimizer, saved["optimizer"]))
            if trainer.accelerator.scaler is not None and saved["scaler"]:
                trainer.accelerator.scaler.load_state_dict(_checked_scaler(saved["scaler"]))


def _metric(value: Any) -> float:
    """A metric of a checkpoint, which may be NaN. Raises ValueError if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a metric has type {type(value).__name__}: expected a number")
    return value


def _checked_scaler(saved: Any) -> dict[str, Any]:
    """The validated state of a gradient scaler. Raises ValueError."""
    checked_keys(
        checked_table(saved), ["scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"]
    )
    factors = {name: checked_number(saved, name, 1e-38, 1e38) for name in ("scale", "growth_factor", "backoff_factor")}
    return factors | {name: checked_count(saved, name, 1 << 31) for name in ("growth_interval", "_growth_tracker")}


@contextmanager
def fits(trainer: Trainer, part: str) -> Iterator[None]:
    """Turn exceptions of restoring `part` of a checkpoint into a MakeweightError that names the checkpoint and part."""
    if trainer.start.saved is None:  # the state comes from an earlier stage and is trusted
        yield
        return
    with _explained(trainer.out, part):
        yield


@contextmanager
def _explained(out: Path | None, part: str) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except MakeweightError as error:
        if str(out) in str(error):
            raise
        raise MakeweightError(f"checkpoint in {out} does not fit this run's {part}: {error}") from error
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise MakeweightError(f"checkpoint in {out} does not fit this run's {part}: {reason}") from error


def _shares(trainer: Trainer) -> dict[str, list[float]]:
    """The running sums of the losses by name, one number per process, so that each process resumes with its own sum."""
    if not trainer.sums:
        return {}
    local = torch.tensor([[float(total) for total in trainer.sums.values()]], dtype=torch.float64)
    if trainer.accelerator.num_processes > 1:
        local = trainer.accelerator.gather(local.to(trainer.accelerator.device)).cpu()  # [processes, losses]
    return dict(zip(trainer.sums, local.T.tolist(), strict=True))
