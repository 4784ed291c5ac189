"""The methods of a trainer that plugins may call, in addition to the attributes in the docstring of `Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data.batches import Batches, as_dataset, subset
from ..errors import MakeweightError
from ..files import artifact as artifacts
from ..files.artifact import Artifact
from ..models.copies import original_of
from ..models.layers import layers
from ..models.records import records_of
from ..models.state import exported_state, restore
from ..models.structure import carried, rebuilt
from ..options import LoopOptions
from ..plugin_manager import Plugins
from ..seeding import generator, purpose
from .distributed import agree, share_buffers
from .evaluation import evaluate
from .settling import settle

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..task import Task
    from .journal import Journal
    from .masks import Masks

EXAMPLES = purpose("examples")


class Services:
    """Methods of `Trainer` for plugins. Methods with a result for every process are collective: all must call them."""

    model: nn.Module
    options: LoopOptions
    task: Task
    plugins: Plugins
    hook: Any
    accelerator: Accelerator
    batches: Batches
    eval_batches: Batches | None
    journal: Journal
    masks: Masks
    auxiliary: nn.ModuleDict
    step: int
    epoch: int
    stage: int
    stopped: str | None
    test_batch_size: int
    original: nn.Module  # the original network, on the CPU
    began: dict[str, Tensor] | None  # weights at the start of the stage; kept if a plugin called initial_model
    began_with: int  # number of records at the start of the stage
    left_auxiliary: dict[str, dict[str, Tensor]]  # weights of auxiliary modules from earlier stages, by name
    left_states: dict[str, Any]  # states of plugins that earlier stages had and this one does not have
    changes: list[Mapping[str, Mapping[int, Sequence[int]]]]  # `Structure.kept` of each change of structure
    is_idle: list[Callable[[], Iterable[Tensor]]]
    groups: list[tuple[list[str], dict[str, float]]]
    keeps_initial: bool
    resumed: bool
    ending: bool

    def layers(self, glob: str = "*") -> dict[str, nn.Module]:
        """The Linear and Conv layers of the model whose names match `glob`. Raises UsageError if none matches."""
        return layers(self.model, glob)

    def add_auxiliary(self, name: str, module: nn.Module) -> nn.Module:
        """Train `module` with the model and include it in checkpoints, but not in `layers` or in the export.

        If the previous stage or the resumed checkpoint has an auxiliary module with this name and these shapes, its
        weights are loaded. Returns the module on the device. Raises MakeweightError if a resumed checkpoint has none.
        """
        self.auxiliary[name] = module.to(self.accelerator.device)
        before, own = self.left_auxiliary.get(name, {}), module.state_dict()
        if {key: each.shape for key, each in before.items()} == {key: each.shape for key, each in own.items()}:
            restore(module, before, f"auxiliary module {name!r}")
        elif self.resumed and not self.ending:
            raise MakeweightError(f"the checkpoint has no auxiliary module {name!r} with the shapes of this run")
        return self.auxiliary[name]

    def idle(self, unused: Callable[[], Iterable[Tensor]]) -> None:
        """Keep parameters in the graph of steps that do not use them, as data-parallel training requires.

        `unused` is called in every step after the forward pass, and returns the parameters that the pass did not use.
        """
        self.is_idle.append(unused)

    def hyperparameters(
        self, names: Iterable[str], *, weight_decay: float | None = None, lr_scale: float = 1.0
    ) -> None:
        """Set the weight decay of some parameters and multiply their learning rate by `lr_scale`.

        Call it in `on_init`. `names` are globs on parameter names; those of auxiliary modules are `auxiliary.<name>.…`
        When the optimizer is built, a glob without a match raises UsageError.
        """
        decay = self.options.weight_decay if weight_decay is None else weight_decay
        self.groups.append((list(names), {"weight_decay": decay, "lr_scale": lr_scale}))

    def sample_batch(self) -> Any:
        """A micro-batch of the first training examples, on the device and equal in every process."""
        return self.batches.samples(1)[0]

    def sample_batches(self, count: int, balanced: bool = False) -> list[Any]:
        """`count` micro-batches of training examples without augmentation, equal in every process.

        With `balanced`, the examples cycle through the classes, so that each class is equally frequent.
        """
        return self.batches.samples(count, balanced)

    def evaluate(self, data: Any = None, examples: int | None = None) -> dict[str, float]:
        """The metric and the loss of the model on `data` (by default the evaluation data), over all processes.

        `examples` limits the evaluation to a random subset of that size, the same one in the whole run. Raises
        MakeweightError if there is no data.
        """
        if not self.task.is_settled:
            self._settled()
        share_buffers(self.accelerator, self.model)
        batches = self.eval_batches if data is None else self._batches(as_dataset(data, "data"))
        if batches is None:
            raise MakeweightError("no data to evaluate on: pass eval_data")
        if examples is not None and examples < batches.examples:
            order = torch.randperm(batches.examples, generator=generator(self.options.seed, EXAMPLES))[:examples]
            batches = self._batches(subset(batches.data, order))
        return evaluate(self.model, batches, self.task, self.accelerator)

    def agree(self, value: Any) -> Any:
        """The JSON value of the first process, in every process. Raises TypeError if it is not JSON."""
        return agree(self.accelerator, value)

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator seeded with the run's seed and `name`. It is independent of all other random numbers."""
        return generator(self.options.seed, purpose(name))

    def log(self, values: dict[str, float]) -> None:
        """Write values to metrics.jsonl and the tracker, together with the current step, epoch and stage."""
        self.journal.log({"step": self.step, "epoch": self.epoch, "stage": self.stage} | values)

    def stop(self, reason: str) -> None:
        """End the stage after the current epoch, in every process. `reason` is shown to the user."""
        self.stopped = reason

    def fresh_model(self) -> nn.Module:
        """A copy of the original network on the CPU, without any recorded change: the input of `makeweight.load`."""
        return original_of(self.original)

    def initial_model(self) -> nn.Module:
        """A plain network with the structure and weights of the start of the stage, before its `on_structure`.

        It is on the device. Call it in `on_init`, also if the stage is resumed; checkpoints then include the weights.
        Raises MakeweightError if the weights were not kept.
        """
        if self.began is None:
            where = "the checkpoint does not hold them" if self.resumed else "call initial_model in on_init"
            raise MakeweightError(f"the weights of the start of the stage are not available: {where}")
        self.keeps_initial = True
        model = rebuilt(self.original, records_of(self.model)[: self.began_with], self.plugins)
        restore(model, self.began, "the weights of the start of the stage")
        return model.to(self.accelerator.device)

    def carried(self, name: str, tensor: Tensor, axis: int | None = None) -> Tensor | None:
        """Select the elements of per-parameter state that the changes of structure kept; None if that is impossible.

        `tensor` has the former shape of the parameter `name`, or with `axis` the former length of that dimension, [C].
        """
        return carried(self.model, self.changes, name, tensor, axis)

    def export_size(self) -> int:
        """The current size of the export in bytes, in every process. `on_export` runs with `artifact.trial`."""
        size = 0
        if self.accelerator.is_main_process:
            size = artifacts.size(self.artifact(trial=True))
        return int(self.agree(size))

    def artifact(self, trial: bool = False) -> Artifact:
        """The export after `on_export` of all plugins. Call it on the main process only."""
        tensors = {name: tensor.cpu().clone() for name, tensor in exported_state(self.model).items()}
        self.masks.write_zeros(tensors)
        artifact = Artifact(tensors, records=records_of(self.model), trial=trial)
        self.hook.on_export(trainer=self, artifact=artifact)
        return artifact

    def export(self, path: str | Path) -> Artifact | None:
        """Write the export to `path` on the main process. Returns its artifact; None in other processes."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return None
        with self.plugins.blamed():
            artifact = self.artifact()
        artifacts.write(artifact, path)
        return artifact

    def _settled(self) -> Any:
        """Settle the task if it is not settled, see `settle`. Returns the batch of training examples that was used."""
        batch = self.sample_batch()
        if not self.task.is_settled:
            data = {"train_data": self.batches.data} | (
                {} if self.eval_batches is None else {"eval_data": self.eval_batches.data}
            )
            settle(self.task, self.model, batch, data)
        return batch

    def _batches(self, data: Any, training: bool = False) -> Batches:
        options, accelerator = self.options, self.accelerator
        size = options.batch_size if training else self.test_batch_size
        return Batches(data, size, accelerator.device, training=training, accumulate=options.accumulate,
                       seed=options.seed, rank=accelerator.process_index, processes=accelerator.num_processes,
                       workers=options.workers, channels_last=options.channels_last)  # fmt: skip
