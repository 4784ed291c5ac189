"""The contract between the trainer and its plugins: read this file first.

    build the model (or read --weights)
    on_init(trainer)                      reshape the model, add heads, parametrizations, loss terms
    build the optimizer, accelerator.prepare
    for stage in stages:                  a plain run is one stage
        on_stage_start(trainer)           the plugin's fields now hold this stage's options
        for epoch, for each optimizer step:
            on_batch(trainer, batches)    surrounds the step; the core's own step is the innermost:
                                          forward → sum of trainer.losses → backward → optimizer.step
        after each epoch:
            evaluate on the validation split
            on_epoch_end(trainer, metrics)
    on_export(trainer, artifact)          in the plugins' order: turn tensors into what is written
    on_program(trainer, model)            for model.onnx and model.pt2, where they are asked for
    load(path): on_load(artifact, model)  in the reverse order: undo on_export
    trainer evaluate: on_evaluate(artifact, model)

A plugin is a dataclass (eq=False) whose fields are its options, with some of these methods marked `@hookimpl`.
It may also have `state_dict()` and `load_state_dict(state)` (JSON values and tensors): they are checkpointed, and
restored *before* `on_init`, so that structure which the plugin decided can be rebuilt before the weights are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import torch

    from .artifact import Artifact
    from .trainer import Trainer

hookspec = pluggy.HookspecMarker("makeweight")
hookimpl = pluggy.HookimplMarker("makeweight")


@hookspec
def on_init(trainer: Trainer) -> str | None:
    """Fires once, on the bare model, before the optimizer exists and before the model is prepared.

    May change the model, call `trainer.add_auxiliary`, and put terms into `trainer.losses`. All structure, for every
    stage to come, is made here: what is added later is not seen by data-parallel training. Random numbers drawn here
    come from a stream of the plugin's own. Returns a line saying what will be touched, shown by `--dry-run`.
    """


@hookspec
def on_stage_start(trainer: Trainer) -> None:
    """Fires when a stage begins, with the weights it begins with; not again when a run is resumed within the stage.

    May change weights in place and take copies of them.
    """


@hookspec(firstresult=True)
def on_batch(trainer: Trainer, batches: list[Any]) -> torch.Tensor | None:
    """Surrounds one optimizer step; `batches` are its micro-batches. The result is the detached loss, a scalar.

    To act at every step, be a wrapper: `@hookimpl(wrapper=True)`, then `loss = yield`, then `return loss`; weights may
    be changed before or after the `yield`. A plain implementation replaces the core's step: at most one plugin may.
    """


@hookspec
def on_epoch_end(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Fires after an epoch was evaluated. May change masks and weights, add to `metrics`, call `trainer.stop`."""


@hookspec
def on_export(trainer: Trainer, artifact: Artifact) -> None:
    """Fires on the main process once training is over, in the plugins' order.

    May replace, add and remove `artifact.tensors` and write JSON into `artifact.metadata[<plugin>]`. Raises
    `MakeweightError` when what was asked of the plugin is not what the tensors show.
    """


@hookspec
def on_program(trainer: Trainer, model: torch.nn.Module) -> None:
    """Fires on the main process before a program is written (`--export onnx,pt2`), once for each.

    `model` is a copy of the trained one on the CPU, in eval, its parametrizations realised. May change it in place:
    what its forward computes is what the program computes, `torch.onnx.is_in_onnx_export()` tells which one it is.
    """


@hookspec
def on_load(artifact: Artifact, model: torch.nn.Module | None) -> None:
    """Fires when a file is read, in the reverse order, for each plugin with an entry in `artifact.metadata`.

    Undoes `on_export` on the tensors, and replays recorded structure on `model` unless that is None. The file is not
    to be trusted: whatever is not as `on_export` wrote it raises `MakeweightError`.
    """


@hookspec
def on_evaluate(artifact: Artifact, model: torch.nn.Module) -> dict[str, torch.nn.Module] | None:
    """Fires when `trainer evaluate` has restored a file's model, for each plugin that is on or has an entry in
    `artifact.metadata`.

    Returns further ways to run the model, by a name for people: modules that are called as the model is, and are
    measured beside it. Raises UsageError where an option asks for what the file does not hold.
    """
