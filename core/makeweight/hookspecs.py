"""The contract between the trainer and its plugins: read this file first. `docs/plugins.md` documents all of it.

    the network: by name, or the user's; --weights FILE builds the structure that FILE records, then reads its weights
    on_check(options, model, batch, task)   every stage's plugins, before anything trains and at --dry-run
    for each stage (a plain run is one stage):
        new plugin instances from the stage's options; load_state_dict with what the last stage, or a checkpoint, left
        on_structure(trainer) -> Structure  decide on another structure; not when resumed. The core carries it out by
                                            on_build(model, record), the only code that changes structure
        on_init(trainer)                    attach: loss terms, auxiliary modules, parametrizations, masks
        accelerator.prepare, then the optimizer
        for each epoch, for each optimizer step:
            on_batch(trainer, batches)      surrounds the step; the core's own step is the innermost:
                                            forward → sum of trainer.losses → backward → optimizer.step
        after each epoch:
            evaluate on the validation split
            on_epoch_end(trainer, metrics)
        on_structure(trainer), once more    with trainer.ending; a new structure is built, then on_init again
    on_export(trainer, artifact)            in the plugins' order: turn tensors into what is written
    on_program(trainer, model)              for model.onnx and model.pt2, where they are asked for

    load(path, model): on_load(artifact) last to first; on_build first to last; the weights; on_attach(artifact, model)
    trainer evaluate: on_evaluate(artifact, model)

A plugin is a dataclass (eq=False) whose fields are its options, with some of these methods marked `@hookimpl`.
It may also have `state_dict()` and `load_state_dict(state)` (JSON values and tensors): the one way in which anything
outlives a stage, since each stage has instances of its own. `state_dict` is called for every checkpoint and at the
stage's end; `load_state_dict` right after construction. A plugin checks a state as it would a file from a stranger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import torch

    from .artifact import Artifact
    from .options import StageOptions
    from .structure import Structure
    from .task import Task
    from .trainer import Trainer

hookspec = pluggy.HookspecMarker("makeweight")
hookimpl = pluggy.HookimplMarker("makeweight")


@hookspec
def on_check(options: StageOptions, model: torch.nn.Module | None, batch: Any, task: Task) -> str | None:
    """Fires for every stage's instance before anything trains, and at `--dry-run`, which prints the line returned.

    Raises UsageError for what cannot work. `model` is a copy that may be traced on `batch` (training examples) by
    `task.forward`; None where an earlier stage, or another plugin in this one, may still decide on its structure.
    """


@hookspec
def on_structure(trainer: Trainer) -> Structure | None:
    """Fires when a stage begins, unless it is resumed, and with `trainer.ending` when it ends.

    Decides and returns a `Structure`, or None to leave the network as it is; changes nothing. The model has no
    attachments when a stage begins, and all of the stage's when it ends. The first process's decision holds. Every
    plugin's decision is carried out before the next plugin is asked, and before any `on_init`.
    """


@hookspec
def on_build(model: torch.nn.Module, record: dict[str, Any]) -> None:
    """Fires wherever a network gets the structure that a record describes: training, resuming, loading.

    Changes the modules of `model` in place (`makeweight.plugin.replace`), by what the record says and nothing else:
    neither the options nor any weight. It may run on the meta device. The record may come from a stranger's file: what
    is not as `on_structure` wrote it raises MakeweightError, and what is looped over is bounded.
    """


@hookspec
def on_init(trainer: Trainer) -> None:
    """Fires when the stage's structure and weights are there, before the model is prepared and the optimizer exists.

    May attach parametrizations and hooks, call `trainer.add_auxiliary`, set `trainer.masks`, add `trainer.losses`. With
    `trainer.resumed` the stage goes on from where `load_state_dict` left it. Random numbers drawn here come from a
    stream of the plugin's own.
    """


@hookspec(firstresult=True)
def on_batch(trainer: Trainer, batches: list[Any]) -> torch.Tensor | None:
    """Surrounds one optimizer step; `batches` are its micro-batches. The result is the detached loss, a scalar.

    To act at every step, be a wrapper: `@hookimpl(wrapper=True)`, then `loss = yield`, then `return loss`; weights may
    be changed in place before or after the `yield`. The masks are applied after all wrappers. A plain implementation
    replaces the core's step: at most one plugin may.
    """


@hookspec
def on_epoch_end(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Fires after an epoch was evaluated. May change masks and weights, add to `metrics`, call `trainer.stop`."""


@hookspec
def on_export(trainer: Trainer, artifact: Artifact) -> None:
    """Fires on the main process once training is over, in the plugins' order.

    May replace, add and remove `artifact.tensors` and write JSON into `artifact.metadata[<plugin>]`. Raises
    MakeweightError when the tensors do not show what was asked of the plugin, unless `artifact.trial`: then only the
    size of the file is wanted, in the middle of training.
    """


@hookspec
def on_program(trainer: Trainer, model: torch.nn.Module) -> None:
    """Fires on the main process before a program is written (`--export onnx,pt2`), once for each.

    `model` is a copy of the trained one on the CPU, in eval, its parametrizations realised. May change it in place:
    what its forward computes is what the program computes, `torch.onnx.is_in_onnx_export()` tells which one it is.
    """


@hookspec
def on_load(artifact: Artifact) -> None:
    """Fires when a file is read, in reverse order, for each plugin with an entry in `artifact.metadata`.

    Turns `artifact.tensors` back into what they were before `on_export`. The file is untrusted: what is not as
    `on_export` wrote it raises MakeweightError. Tensors named `<plugin>.…` are the plugin's own, not the model's.
    """


@hookspec
def on_attach(artifact: Artifact, model: torch.nn.Module) -> None:
    """Fires when a loaded model has its structure and weights, for each plugin with an entry in `artifact.metadata`.

    Attaches what lets the model compute as the trained one did, and takes the plugin's own tensors out of
    `artifact.tensors`. The file is untrusted.
    """


@hookspec
def on_evaluate(artifact: Artifact, model: torch.nn.Module) -> dict[str, torch.nn.Module] | None:
    """Fires when `trainer evaluate` has loaded a file's model, for each plugin that is on or in `artifact.metadata`.

    Returns further ways to run the model, by a name for people: modules that are called as the model is, and are
    measured beside it. Raises UsageError where an option asks for what the file does not hold.
    """
