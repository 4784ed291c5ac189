"""What plugins may ask of a trainer, beside the attributes that `Trainer` documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import artifact as artifacts
from .artifact import Artifact
from .batches import Batches, Tensors, as_dataset
from .distributed import agree, share_buffers
from .errors import MakeweightError
from .evaluation import evaluate
from .layers import layers
from .options import LoopOptions
from .plugins import Plugins
from .seeding import generator, purpose
from .state import exported_state, restore
from .structure import carried, original_of, rebuilt, records_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .journal import Journal
    from .masks import Masks
    from .task import Task

EXAMPLES = purpose("examples")


class Services:
    """The methods of a trainer that plugins call."""

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
    original: nn.Module  # the network that was given, on the CPU, for initial_model and fresh_model
    began: dict[str, Tensor] | None  # the weights with which the stage began, kept where a plugin asked for them
    began_with: int  # and how many records it had then
    left_auxiliary: dict[str, dict[str, Tensor]]  # weights of auxiliary modules from before, by name
    left_states: dict[str, Any]  # of plugins that an earlier stage had, and this one does not
    changes: list[Mapping[str, Mapping[int, Sequence[int]]]]  # what each change of structure kept
    is_idle: list[Callable[[], Iterable[Tensor]]]
    groups: list[tuple[list[str], dict[str, float]]]
    keeps_initial: bool
    resumed: bool
    ending: bool

    def layers(self, glob: str = "*") -> dict[str, nn.Module]:
        """The model's Linear and Conv layers whose name matches. Raises UsageError when there is none."""
        return layers(self.model, glob)

    def add_auxiliary(self, name: str, module: nn.Module) -> nn.Module:
        """Train and checkpoint a module with the model, outside its layers, its sparsity and the export.

        It starts from the weights that a module of this name and these shapes had before: in the last stage, or in the
        checkpoint that is resumed.
        """
        self.auxiliary[name] = module.to(self.accelerator.device)
        before, own = self.left_auxiliary.get(name, {}), module.state_dict()
        if {key: each.shape for key, each in before.items()} == {key: each.shape for key, each in own.items()}:
            restore(module, before, f"auxiliary module {name!r}")
        elif self.resumed and not self.ending:
            raise MakeweightError(f"the checkpoint's auxiliary module {name!r} is missing, or not this run's")
        return self.auxiliary[name]

    def idle(self, unused: Callable[[], Iterable[Tensor]]) -> None:
        """Keep parameters in the graph of steps that do not use them, as data-parallel training asks.

        `unused` is called in every step, after the forward, and returns the parameters that it left out.
        """
        self.is_idle.append(unused)

    def hyperparameters(
        self, names: Iterable[str], *, weight_decay: float | None = None, lr_scale: float = 1.0
    ) -> None:
        """Give parameters a weight decay of their own, and a learning rate `lr_scale` times that of the others.

        To be called in `on_init`. `names` are globs on the names of the model's parameters, and on `auxiliary.<name>.…`
        Raises UsageError, before training, for one that matches nothing.
        """
        decay = self.options.weight_decay if weight_decay is None else weight_decay
        self.groups.append((list(names), {"weight_decay": decay, "lr_scale": lr_scale}))

    def sample_batch(self) -> Any:
        """The first training examples as a micro-batch on the device, the same in every process."""
        return self.batches.samples(1)[0]

    def sample_batches(self, count: int, balanced: bool = False) -> list[Any]:
        """`count` micro-batches of training examples without augmentation, the same in every process.

        `balanced`: as many of each class, in turn.
        """
        return self.batches.samples(count, balanced)

    def evaluate(self, data: Any = None, examples: int | None = None) -> dict[str, float]:
        """The metric and the loss of the model on the evaluation data, or on other data, over all processes.

        `examples`: on so many of them, drawn once for the whole run.
        """
        share_buffers(self.accelerator, self.model)
        batches = self.eval_batches if data is None else self._batches(as_dataset(data, "data"))
        if batches is None:
            raise MakeweightError("there is nothing to evaluate on: give eval_data")
        if examples is not None and examples < batches.examples:
            order = torch.randperm(batches.examples, generator=generator(self.options.seed, EXAMPLES))[:examples]
            batches = self._batches(subset(batches.data, order))
        return evaluate(self.model, batches, self.task, self.accelerator)

    def agree(self, value: Any) -> Any:
        """The first process's JSON value, in every process."""
        return agree(self.accelerator, value)

    def generator(self, name: str) -> torch.Generator:
        """A generator on the CPU for one purpose, that moves no other random number."""
        return generator(self.options.seed, purpose(name))

    def log(self, values: dict[str, float]) -> None:
        """Write values to metrics.jsonl and the tracker, with the step, the epoch and the stage."""
        self.journal.log({"step": self.step, "epoch": self.epoch, "stage": self.stage} | values)

    def stop(self, reason: str) -> None:
        """End the stage after this epoch, in every process."""
        self.stopped = reason

    def fresh_model(self) -> nn.Module:
        """A copy, on the CPU, of the original network: what `makeweight.load` takes, from before all records."""
        return original_of(self.original)

    def initial_model(self) -> nn.Module:
        """A plain network as the stage began, from before its `on_structure`: structure and weights, on the device.

        To be called in `on_init`, where the stage is resumed too: the weights are then part of its checkpoints.
        """
        if self.began is None:
            where = "the checkpoint does not hold them" if self.resumed else "ask for it in on_init"
            raise MakeweightError(f"the weights with which the stage began are not there: {where}")
        self.keeps_initial = True
        model = rebuilt(self.original, records_of(self.model)[: self.began_with], self.plugins)
        restore(model, self.began, "the weights with which the stage began")
        return model.to(self.accelerator.device)

    def carried(self, name: str, tensor: Tensor, axis: int | None = None) -> Tensor | None:
        """State by element of a parameter, brought to the shape that the parameter has now; None where it cannot be.

        `tensor` has the shape that the parameter had, or with `axis` the length of that dimension of it, [C].
        """
        return carried(self.model, self.changes, name, tensor, axis)

    def export_size(self) -> int:
        """The bytes that the export would have now, in every process; what plugins promise of it is not checked."""
        size = 0
        if self.accelerator.is_main_process:
            size = artifacts.size(self.artifact(trial=True))
        return int(self.agree(size))

    def artifact(self, trial: bool = False) -> Artifact:
        """What is written, as the plugins' `on_export` leave it; on the main process."""
        tensors = {name: tensor.cpu().clone() for name, tensor in exported_state(self.model).items()}
        self.masks.write_zeros(tensors)
        artifact = Artifact(tensors, records=records_of(self.model), trial=trial)
        self.hook.on_export(trainer=self, artifact=artifact)
        return artifact

    def _batches(self, data: Any, training: bool = False) -> Batches:
        options, accelerator = self.options, self.accelerator
        size = options.batch_size if training else self.test_batch_size
        return Batches(data, size, accelerator.device, training=training, accumulate=options.accumulate,
                       seed=options.seed, rank=accelerator.process_index, processes=accelerator.num_processes,
                       workers=options.workers, channels_last=options.channels_last)  # fmt: skip


def subset(data: Any, indices: Tensor) -> Any:
    """These examples of a data set, int64 [n]."""
    if isinstance(data, Tensors):
        return data.subset(indices)
    return torch.utils.data.Subset(data, indices.tolist())
