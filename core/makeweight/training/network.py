"""Sets up the network of a stage: structure, states of plugins, masks, and attachments."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..discovery import installed
from ..errors import MakeweightError
from ..models.freezing import freeze
from ..models.records import Record, checked_record, records_of
from ..models.state import plain_state, restore
from ..models.structure import Structure, build, carried, check_records, rebuilt
from ..plugin_manager import Plugins
from ..seeding import mix, purpose
from . import snapshot
from .distributed import agree, share_weights
from .start import Start
from .step import Step

if TYPE_CHECKING:
    from ..trainer import Trainer


def set_up(trainer: Trainer) -> None:
    """Restore the state of earlier stages or of a checkpoint, then call `on_structure` (new stages) and `on_init`."""
    start, saved = trainer.start, trainer.start.saved
    trainer.resumed = saved is not None
    if saved is not None:
        snapshot.put_back_network(trainer, saved)
        with snapshot.fits(trainer, "masks and auxiliary modules"):
            start = snapshot.start_of(saved)
    else:
        if trainer.options.frozen:
            freeze(trainer.model, trainer.options.frozen)
        share_weights(trainer.accelerator, trainer.model)
        trainer.began = {name: tensor.clone() for name, tensor in plain_state(trainer.model).items()}
        trainer.began_with = len(records_of(trainer.model))
    give(trainer, start.states, start.masks, start.auxiliary)
    trainer.start.states, trainer.start.masks, trainer.start.auxiliary = {}, {}, {}
    if saved is None and decide(trainer):
        check_replay(trainer)
    attach(trainer)
    if not trainer.keeps_initial:
        trainer.began = None


def left_by(trainer: Trainer) -> Start:
    """The start of the next stage, after `trainer` has finished its stage."""
    return Start(
        stage=trainer.stage + 1, step=trainer.step, epochs_begun=trainer.epochs_begun, original=trainer.original,
        checked=True, states=snapshot.states_of(trainer), masks=trainer.masks.state(),
        auxiliary=snapshot.auxiliary_of(trainer), weights=plain_state(trainer.model), records=records_of(trainer.model),
    )  # fmt: skip


def give(trainer: Trainer, states: Any, masks: Any, auxiliary: Any) -> None:
    """Restore states of plugins, masks, and weights of auxiliary modules from the previous stage or a checkpoint.

    The states of plugins that this stage does not have are kept for later stages. Their masks also apply in this stage.
    """
    trainer.left_states = {name: state for name, state in states.items() if name not in trainer.plugins.by_name}
    for name, plugin in trainer.plugins.by_name.items():
        if name in states and hasattr(plugin, "load_state_dict"):
            with snapshot.fits(trainer, f"plugin {name!r}"):
                plugin.load_state_dict(states[name])
    trainer.left_auxiliary = auxiliary
    with snapshot.fits(trainer, "masks"):
        trainer.masks.load(masks)


def attach(trainer: Trainer) -> None:
    """Call `on_init` of every plugin, each with its own random seed."""
    for name in trainer.plugins.by_name:
        with torch.random.fork_rng():
            torch.manual_seed(mix(trainer.options.seed, purpose(name), trainer.stage))
            trainer.plugins.call(name, "on_init", trainer=trainer)
    trainer.masks.release()


def decide(trainer: Trainer) -> bool:
    """Call `on_structure` of each plugin, and build each result before the next call. Returns whether there was one."""
    changed = False
    for name in trainer.plugins.with_hook("on_structure"):
        with torch.random.fork_rng():
            torch.manual_seed(mix(trainer.options.seed, purpose(f"structure {name}"), trainer.stage))
            decision = trainer.plugins.call(name, "on_structure", trainer=trainer)
        structure = of_first_process(trainer, name, decision)
        if structure is not None:
            if trainer.ending and not changed:
                make_plain(trainer)
            carry_out(trainer, name, structure)
            changed = True
    return changed


def of_first_process(trainer: Trainer, name: str, decision: Any) -> Structure | None:
    """The decision of the first process in every process, its record converted through JSON.

    Tensors are not sent: outside the main process the result has none. Raises MakeweightError if `decision` is neither
    a `Structure` nor None, or if its record is invalid.
    """
    try:
        if not isinstance(decision, Structure | None):
            raise TypeError(f"a {type(decision).__name__}: expected a Structure or None")
        found = None if decision is None else [checked_record(decision.record), _as_lists(decision.kept)]
    except (TypeError, ValueError) as error:
        raise MakeweightError(f"plugin {name!r}: on_structure returned {error}") from error
    found = agree(trainer.accelerator, found)
    if found is None:
        return None
    kept = {parameter: {int(axis): each for axis, each in axes.items()} for parameter, axes in found[1].items()}
    # Decisions of other processes are discarded; their tensors may have other names and shapes.
    tensors = decision.tensors if decision is not None and trainer.accelerator.is_main_process else {}
    return Structure(found[0], tensors, kept)


def carry_out(trainer: Trainer, name: str, structure: Structure) -> None:
    """Build `structure` on the trainer's model, and transfer weights and masks.

    Raises MakeweightError if a tensor of `structure` does not fit the new model.
    """
    model, entry = trainer.model, installed().get(name)
    before = plain_state(model)
    record = Record(name, entry.dist.version if entry and entry.dist else "0", structure.record)
    with torch.random.fork_rng():
        torch.manual_seed(mix(trainer.options.seed, purpose("build"), len(records_of(model))))
        build(model, record, trainer.plugins)
    as_before(model.to(trainer.accelerator.device), before)
    state = model.state_dict()
    for key, tensor in structure.tensors.items():
        if key not in state or state[key].shape != tensor.shape:
            expected = f"the shape {list(state[key].shape)}" if key in state else "a name of the new structure"
            raise MakeweightError(f"plugin {name!r}: tensor {key!r} of shape {list(tensor.shape)}: expected {expected}")
        state[key].copy_(tensor)
    for key, tensor in before.items():
        if key in state and key not in structure.tensors and state[key].shape == tensor.shape:
            state[key].copy_(tensor)
    share_weights(trainer.accelerator, model)
    trainer.masks.carry(lambda name, mask: carried(model, [structure.kept], name, mask))  # once per change
    trainer.changes.append(structure.kept)


def as_before(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Use the channels-last memory format for `model` if a tensor of `before` uses it."""
    images = [tensor for tensor in before.values() if tensor.ndim == 4]
    last = torch.channels_last
    if any(each.is_contiguous(memory_format=last) and not each.is_contiguous() for each in images):
        model.to(memory_format=last)


def check_replay(trainer: Trainer) -> None:
    """Raise MakeweightError unless building the records on the original network gives the current structure."""
    shapes = {name: tensor.shape for name, tensor in plain_state(trainer.model).items()}
    records = records_of(trainer.model)
    if all(record.plugin in installed() for record in records):  # without its plugin, no record can be built
        try:
            check_records(trainer.original, records, shapes)
        except MakeweightError as error:
            raise MakeweightError(f"the records do not rebuild the structure: {error}") from error


def new_structure_at_end(trainer: Trainer) -> bool:
    """Call `on_structure` at the end of the stage. If a plugin returns a structure, build it and attach again.

    Returns whether the structure changed. The plugins are then replaced by new instances with the same options.
    """
    trainer.ending = True
    if not trainer.plugins.with_hook("on_structure"):
        return False
    states, auxiliary = snapshot.states_of(trainer), snapshot.auxiliary_of(trainer)
    if not decide(trainer):
        return False
    check_replay(trainer)
    changes, masks = trainer.changes, trainer.masks.state()
    trainer.adopt(Plugins({name: fresh(plugin) for name, plugin in trainer.plugins.by_name.items()}, Step()))
    trainer.changes, trainer.resumed, trainer.keeps_initial = changes, True, False
    give(trainer, states, masks, auxiliary)
    trainer.began = {name: tensor.clone() for name, tensor in plain_state(trainer.model).items()}
    trainer.began_with = len(records_of(trainer.model))
    attach(trainer)
    trainer.keeps_initial, trainer.began = False, None
    return True


def make_plain(trainer: Trainer) -> None:
    """Remove all attachments from the trainer's model in place; structure and plain weights stay.

    The model object stays the same, so that references to it stay valid.
    """
    weights = {name: tensor.clone() for name, tensor in plain_state(trainer.model).items()}
    plain = rebuilt(trainer.original, records_of(trainer.model), trainer.plugins).to(trainer.accelerator.device)
    restore(plain, weights, "the trained weights")
    trainer.changes = []
    trainer.model.__class__ = plain.__class__
    trainer.model.__dict__.clear()
    trainer.model.__dict__.update(plain.__dict__)
    trainer.masks.release()


def fresh(plugin: Any) -> Any:
    """A new plugin instance with the same options."""
    if dataclasses.is_dataclass(plugin) and not isinstance(plugin, type):
        return dataclasses.replace(plugin)
    return copy.copy(plugin)


def _as_lists(kept: Any) -> dict[str, dict[str, list[int]]]:
    return {
        str(name): {str(axis): [int(each) for each in indices] for axis, indices in axes.items()}
        for name, axes in kept.items()
    }
