"""The plugin: when masks are made, and that what they drop stays zero."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from makeweight import MakeweightError, UsageError, hookimpl
from makeweight.distributed import check_equal, from_first

if TYPE_CHECKING:
    from torch import Tensor, nn

    from makeweight import Artifact, Trainer


@dataclass(eq=False)
class Prune:
    """Set the smallest weights to zero, on a schedule, and keep them there."""

    sparsity: float | dict[str, float] = 0.9
    """fraction of the weights that become zero, or a table by layer glob: '{"conv*": 0.4, "fc1": 0.92}'"""
    layers: str = "*"
    """glob of the layers to prune, where sparsity is one number"""
    scope: Literal["layer", "global"] = "layer"
    """layer: each layer to its sparsity; global: the smallest weights of all layers together"""
    schedule: Literal["cubic", "linear", "one-shot"] = "cubic"
    """how the sparsity rises from begin to end; one-shot prunes all at begin"""
    begin: float = 0.0
    """epoch of the stage at which pruning begins"""
    end: float | None = None
    """epoch at which the sparsity is reached; two thirds of the stage unless given"""
    every: int = 100
    """steps between two revisions of the masks while the sparsity rises; they are revised after each epoch too"""

    def __post_init__(self) -> None:
        table = self.sparsity if isinstance(self.sparsity, dict) else {"": self.sparsity}
        for layer, value in table.items():
            if not 0 <= value < 1:
                raise UsageError(f"sparsity {f'{layer} ' if layer else ''}{value:g}: expected 0 <= sparsity < 1")
        if self.scope == "global" and isinstance(self.sparsity, dict):
            raise UsageError(f"scope global: expected one number for sparsity, not the table {self.sparsity}")
        if self.begin < 0:
            raise UsageError(f"begin {self.begin:g}: expected an epoch, 0 or more")
        if self.end is not None and self.end < self.begin:
            raise UsageError(f"end {self.end:g}: expected an epoch not before begin {self.begin:g}")
        if self.every < 1:
            raise UsageError(f"every {self.every}: expected at least 1 step")
        self.masks: dict[str, Tensor] = {}  # by layer, in the dtype of the weight: 1 keeps, 0 drops
        self.initial: dict[str, float] = {}  # each layer's sparsity when the stage began
        self.reached: dict[str, float] = {}  # and the one that the present masks were made for

    @hookimpl
    def on_init(self, trainer: Trainer) -> str:
        import torch

        for options, plugin in trainer.staged(self):
            plugin.check_times(options.epochs)
            plugin.targets(trainer.model)
        targets = self.targets(trainer.model)
        layers = trainer.layers()
        for name, mask in self.masks.items():  # of a checkpoint
            if name not in layers or mask.dtype != torch.bool or mask.shape != self._weight(trainer, name).shape:
                raise MakeweightError(f"the checkpoint's mask of {name!r} does not fit the model")
            self.masks[name] = mask.to(self._weight(trainer, name))
        weights = sum(self._weight(trainer, name).numel() for name in targets)
        shown = ", ".join(f"{name} {target:g}" for name, target in targets.items())
        return f"{weights:,} weights of {len(targets)} layers, sparsity {shown} ({self.schedule}, by {self.scope})"

    @hookimpl
    def on_stage_start(self, trainer: Trainer) -> None:
        from .magnitude import measured

        targets = self.targets(trainer.model)
        if self.scope == "global":
            whole = measured(self.masks) if self.masks else 0.0
            self.initial = dict.fromkeys(targets, whole)
        else:
            self.initial = {name: measured({name: self.masks[name]}) if name in self.masks else 0.0 for name in targets}
        self._revise(trainer)

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer) -> Generator[None, Any, Any]:
        loss = yield
        if trainer.step % self.every == 0:
            self._revise(trainer)
        self._project(trainer)
        return loss

    @hookimpl
    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        from .magnitude import measured

        self._revise(trainer)
        weights = {name: self._weight(trainer, name) for name in self.targets(trainer.model)}
        check_equal(trainer.accelerator, "pruned weights", weights)
        metrics["sparsity"] = measured(weights)

    @hookimpl
    def on_export(self, trainer: Trainer, artifact: Artifact) -> None:
        """Check that the sparsity asked for is there; zeros are written as +0.0: a product with a mask may be -0.0."""
        import torch

        from makeweight.layers import weight_name

        targets = self.targets(trainer.model)
        for name in {**targets, **self.masks}:
            tensor = artifact.tensors[weight_name(name)]
            artifact.tensors[weight_name(name)] = torch.where(tensor == 0, 0, tensor)
        groups = [(list(targets), max(targets.values()))] if self.scope == "global" else [
            ([name], target) for name, target in targets.items()
        ]  # fmt: skip
        for names, target in groups:
            tensors = [artifact.tensors[weight_name(name)] for name in names]
            zeros, total = sum(int((tensor == 0).sum()) for tensor in tensors), sum(map(torch.numel, tensors))
            if zeros < round(target * total):
                raise MakeweightError(
                    f"sparsity of {', '.join(names)} is {zeros / total:.4f} where {target:g} was asked for: "
                    "dropped weights came back, or training stopped before prune.end"
                )

    def state_dict(self) -> dict[str, Any]:
        """The masks, as bool tensors, and where the stage's schedule began and is."""
        masks = {name: mask.bool() for name, mask in self.masks.items()}
        return {"masks": masks, "initial": self.initial, "reached": self.reached}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks = dict(state["masks"])
        self.initial, self.reached = (
            {str(name): float(value) for name, value in state[key].items()} for key in ("initial", "reached")
        )

    def targets(self, model: nn.Module) -> dict[str, float]:
        """The sparsity asked for, by layer. Raises UsageError for a glob that matches no layer."""
        from makeweight.layers import by_glob

        return by_glob(model, self.sparsity, self.layers)

    def check_times(self, epochs: int) -> None:
        """Raise UsageError for a begin or an end that a stage of so many epochs does not reach."""
        if self.begin >= epochs:
            raise UsageError(f"prune.begin {self.begin:g}: expected less than the {epochs} epochs of the stage")
        if self.end is not None and self.end > epochs:
            raise UsageError(f"prune.end {self.end:g}: expected at most the {epochs} epochs of the stage")

    def _done(self, trainer: Trainer) -> float:
        """The fraction of the schedule that has passed; below 0 before it begins."""
        end = max(self.begin, trainer.stage.options.epochs * 2 / 3) if self.end is None else self.end
        passed = trainer.progress - self.begin
        return passed / (end - self.begin) if end > self.begin or passed < 0 else 1.0

    def _revise(self, trainer: Trainer) -> None:
        """Make the masks anew where the schedule asks for more zeros than there are; the first process decides."""
        from .magnitude import global_masks, layer_masks, scheduled

        done = self._done(trainer)
        targets = self.targets(trainer.model)
        now = {
            name: scheduled(self.schedule, self.initial.get(name, 0.0), target, done)
            if done >= 0
            else self.initial.get(name, 0.0)
            for name, target in targets.items()
        }
        if now == self.reached:
            return
        weights = {name: self._weight(trainer, name).detach() for name in now}
        by_layer = self.scope == "layer"
        masks = layer_masks(weights, now) if by_layer else global_masks(weights, max(now.values()))
        for name, mask in masks.items():
            self.masks[name] = from_first(trainer.accelerator, mask.to(weights[name]))
        check_equal(trainer.accelerator, "masks", self.masks)
        self.reached = now
        self._project(trainer)

    def _project(self, trainer: Trainer) -> None:
        """Set what the masks drop to zero, in place: one call over all layers."""
        import torch

        if self.masks:
            weights = [self._weight(trainer, name).data for name in self.masks]
            torch._foreach_mul_(weights, list(self.masks.values()))

    def _weight(self, trainer: Trainer, name: str) -> nn.Parameter:
        from makeweight.layers import leaf_weight

        return leaf_weight(attrgetter(name)(trainer.model) if name else trainer.model)
