"""The contract between the trainer and its plugins: read this file first. `docs/plugins.md` documents all of it.

    build the model (--weights FILE: build the structure recorded in FILE, then load its weights)
    on_check(options, model, batch, task)   plugins of every stage, before training starts and at --dry-run
    for each stage (a plain run has one stage):
        create plugin instances from the stage's options
        load_state_dict(state)              state from the previous stage or from a checkpoint
        on_structure(trainer) -> Structure  choose a new structure; skipped when the stage is resumed. The core then
                                            calls on_build(model, record), the only code that changes the structure
        on_init(trainer)                    attach loss terms, auxiliary modules, parametrizations, masks
        accelerator.prepare, then build the optimizer
        for each epoch, for each optimizer step:
            on_batch(trainer, batches)      wraps the step. The innermost implementation is the core's own step:
                                            forward → sum of trainer.losses → backward → optimizer.step
        after each epoch:
            evaluate on the validation split
            on_epoch_end(trainer, metrics)
        on_structure(trainer) again         trainer.ending is True; after a new structure, on_init fires again
    on_export(trainer, artifact)            in plugin order: encode the tensors of model.safetensors
    on_program(trainer, model)              before model.onnx and model.pt2 are written, if requested

    load(path, model): on_load(artifact) in reverse order, on_build in order, load the weights,
                       on_attach(artifact, model)
    trainer evaluate: on_evaluate(artifact, model)

A plugin is a dataclass (eq=False). Its fields are its options, and it marks its hooks with `@hookimpl`. Every stage has
its own plugin instances. State outlives a stage only through `state_dict()` and `load_state_dict(state)`, which
exchange JSON values and tensors. The core calls `state_dict` for every checkpoint and at the end of the stage, and
`load_state_dict` right after construction. A plugin must validate a state as it would validate an untrusted file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import torch

    from .files.artifact import Artifact
    from .models.structure import Structure
    from .options import StageOptions
    from .task import Task
    from .trainer import Trainer

hookspec = pluggy.HookspecMarker("makeweight")
hookimpl = pluggy.HookimplMarker("makeweight")


@hookspec
def on_check(options: StageOptions, model: torch.nn.Module | None, batch: Any, task: Task) -> str | None:
    """Fires for the plugins of every stage before training starts, and at `--dry-run`, which prints the returned line.

    `model` is a copy of the network. The plugin may trace it on `batch`, a batch of training examples, with
    `task.forward`. `model` is None if an earlier stage or another plugin of this stage may still change the structure.
    Raises UsageError if the options cannot work with this model, data or task.
    """


@hookspec
def on_structure(trainer: Trainer) -> Structure | None:
    """Fires at the start of a stage, unless the stage is resumed, and again at its end, with `trainer.ending` set.

    Returns a `Structure`, or None to keep the current structure. Must not change the model: the core builds the new
    structure with `on_build` before it calls the next plugin. At the start of a stage, the model has no attachments; at
    the end, it has all attachments of the stage. With several processes, the decision of the first process is used.
    """


@hookspec
def on_build(model: torch.nn.Module, record: dict[str, Any]) -> None:
    """Fires whenever a network is given the structure in a record: in training, in resuming and in loading.

    Changes the modules of `model` in place with `makeweight.plugin.replace`. The result must depend only on `record`
    and the modules of `model`, not on options or weights; the model may be on the meta device. The record may come from
    an untrusted file: validate every value and bound every loop. Raises MakeweightError for an invalid record.
    """


@hookspec
def on_init(trainer: Trainer) -> None:
    """Fires after the stage's structure is built and its weights are loaded, before `accelerator.prepare`.

    May attach parametrizations and module hooks, add auxiliary modules (`trainer.add_auxiliary`), set `trainer.masks`
    and add to `trainer.losses`. If `trainer.resumed` is True, the stage continues from the state passed to
    `load_state_dict`. torch's random generators are seeded for this plugin and stage.
    """


@hookspec(firstresult=True)
def on_batch(trainer: Trainer, batches: list[Any]) -> torch.Tensor | None:
    """Surrounds one optimizer step. `batches` is the list of its micro-batches. Returns the detached loss, a scalar.

    To run code at every step, write a wrapper: `@hookimpl(wrapper=True)`, one `loss = yield`, and `return loss` at the
    end. Weights may be changed in place before and after the `yield`. The core applies the masks after all wrappers. An
    implementation without `wrapper=True` replaces the core's step; at most one plugin may have one.
    """


@hookspec
def on_epoch_end(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Fires after the evaluation of each epoch. May change masks and weights, add to `metrics`, call `trainer.stop`."""


@hookspec
def on_export(trainer: Trainer, artifact: Artifact) -> None:
    """Fires on the main process in plugin order, after training and whenever `trainer.export_size` is called.

    May replace, add and remove `artifact.tensors`, and write JSON values to `artifact.metadata[<plugin>]`. Raises
    MakeweightError if the tensors do not meet the plugin's options, for example a sparsity that was not reached. If
    `artifact.trial` is True, this check is skipped: the call only measures the size of the file during training.
    """


@hookspec
def on_program(trainer: Trainer, model: torch.nn.Module) -> None:
    """Fires on the main process before each program is written (`--export onnx,pt2`).

    `model` is a copy of the trained model on the CPU, in eval mode, with its parametrizations removed and their values
    kept. May change the copy in place. The program computes the forward pass of the copy.
    `torch.onnx.is_in_onnx_export()` is True for ONNX and False for pt2. Raises MakeweightError if the model cannot be
    written as this program.
    """


@hookspec
def on_load(artifact: Artifact) -> None:
    """Fires when a file is read, in reverse order, for each plugin that has an entry in `artifact.metadata`.

    Restores `artifact.tensors` to their values before `on_export`. Tensors named `<plugin>.…` belong to the plugin and
    not to the model. The file is untrusted. Raises MakeweightError for any content that `on_export` does not write.
    """


@hookspec
def on_attach(artifact: Artifact, model: torch.nn.Module) -> None:
    """Fires after a loaded model has its structure and weights, for each plugin with an entry in `artifact.metadata`.

    Attaches the parametrizations or hooks that the trained model computed with, and removes the plugin's own tensors
    from `artifact.tensors`. The file is untrusted. Raises MakeweightError as `on_load` does.
    """


@hookspec
def on_evaluate(artifact: Artifact, model: torch.nn.Module) -> dict[str, torch.nn.Module] | None:
    """Fires in `trainer evaluate` after the model is loaded, for each plugin in `--plugins` or `artifact.metadata`.

    Returns variants of the model by display name, or None. Each variant is a module with the call signature of the
    model. It is evaluated in addition to the model. Raises UsageError if an option needs data that the file lacks.
    """
