"""The plugin: when masks are made, and that what they drop stays zero."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from makeweight import MakeweightError, hookimpl
from makeweight.distributed import check_equal, from_first

from .checks import check_options, check_stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from makeweight import Artifact, Trainer

    from .criteria import Criterion
    from .curves import Curves


@dataclass(eq=False)
class Prune:
    """Set the smallest weights to zero, on a schedule, and keep them there."""

    sparsity: float | dict[str, float] | None = None
    """fraction of the weights that become zero, or a table by layer glob: '{"conv*": 0.4, "fc1": 0.92}'; 0.9 unless
    given, or unless quality or pattern is"""
    quality: float | dict[str, float] | None = None
    """instead: zero is what is below so many standard deviations of the layer's weights; also a table by layer glob"""
    pattern: str | dict[str, str] | None = None
    """instead: N:M, at most N of every M weights along the input channels, as 2:4; also a table by layer glob"""
    layers: str = "*"
    """glob of the layers to prune, where what is asked for is no table"""
    scope: Literal["layer", "global"] = "layer"
    """layer: each layer to its sparsity; global: the smallest weights of all layers together"""
    sensitivity: str | None = None
    """what 'trainer sensitivity' wrote: the sparsity is shared out so that sensitive layers get less"""
    schedule: Literal["cubic", "linear", "one-shot", "iterative"] = "cubic"
    """how the sparsity rises from begin to end; one-shot prunes all at begin, iterative in rounds"""
    rounds: int | None = None
    """with schedule iterative: how often is pruned and retrained, evenly from begin to end; 5 unless given"""
    surgery: bool = False
    """let dropped weights go on being trained, and come back, at revisions until end, where they have grown"""
    idle_first: bool = False
    """drop first what reads an input that does not vary over a batch: the bias can add what such weights add"""
    begin: float = 0.0
    """epoch of the stage at which pruning begins"""
    end: float | None = None
    """epoch at which the sparsity is reached; two thirds of the stage unless given"""
    every: int | None = None
    """steps between two revisions of the masks until end, which come after each epoch too; 100 unless given, 10 with
    surgery"""

    def __post_init__(self) -> None:
        check_options(self)
        self.masks: dict[str, Tensor] = {}  # by layer, in the dtype of the weight: 1 keeps, 0 drops
        self.aside: dict[str, Tensor] = {}  # of surgery: the dropped weights, zero where the mask keeps
        self.dropping: dict[str, Tensor] = {}  # and the masks' complements
        self.initial: dict[str, float] = {}  # what each layer had of what is asked for when the stage began
        self.reached: dict[str, float] = {}  # and what the present masks were made for
        self.curves: dict[str, Curves] = {}  # by file

    @hookimpl
    def on_init(self, trainer: Trainer) -> str:
        from .plan import shown

        for options, plugin in trainer.staged(self):
            check_stage(plugin, options.epochs)
        self._fit_checkpoint(trainer)
        return shown(trainer, [plugin for _, plugin in trainer.staged(self)])

    @hookimpl
    def on_stage_start(self, trainer: Trainer) -> None:
        self.initial = self.criterion(trainer.model).start(self.masks)
        self.reached, self.aside, self.dropping = {}, {}, {}
        self._revise(trainer)

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer) -> Generator[None, Any, Any]:
        loss = yield
        if self.aside:
            self._follow(trainer)
        if trainer.step % (self.every or (10 if self.surgery else 100)) == 0:
            self._revise(trainer)
        self._project(trainer)
        return loss

    @hookimpl
    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        from .magnitude import measured

        self._revise(trainer)
        weights = {name: self._weight(trainer, name) for name in self.criterion(trainer.model).targets}
        check_equal(trainer.accelerator, "pruned weights", weights)
        check_equal(trainer.accelerator, "dropped weights", self.aside)
        metrics["sparsity"] = measured(weights)
        metrics |= {f"sparsity/{name}": measured({name: weight}) for name, weight in weights.items() if name}

    @hookimpl
    def on_export(self, trainer: Trainer, artifact: Artifact) -> None:
        """Check that what was asked for is there; zeros are written as +0.0: a product with a mask may be -0.0."""
        import torch

        from makeweight.layers import weight_name

        criterion = self.criterion(trainer.model)
        for name in {**criterion.targets, **self.masks}:
            tensor = artifact.tensors[weight_name(name)]
            artifact.tensors[weight_name(name)] = torch.where(tensor == 0, 0, tensor)
        tensors = {name: artifact.tensors[weight_name(name)] for name in criterion.targets}
        criterion.check(tensors, self.masks, self.reached)

    def state_dict(self) -> dict[str, Any]:
        """The masks, as bool tensors, the weights they drop, and where the stage's schedule began and is."""
        masks = {name: mask.bool() for name, mask in self.masks.items()}
        return {"masks": masks, "aside": self.aside, "initial": self.initial, "reached": self.reached}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks, self.aside = dict(state["masks"]), dict(state.get("aside", {}))
        self.initial, self.reached = (
            {str(name): float(value) for name, value in state[key].items()} for key in ("initial", "reached")
        )
        for name, value in [*self.initial.items(), *self.reached.items()]:
            if not 0 <= value < 1000 or self.initial.get(name, 0.0) >= 1:
                raise ValueError(f"{name} was pruned to {value:g}")

    def criterion(self, model: nn.Module) -> Criterion:
        """What this stage asks for, by layer. Raises UsageError for a glob that matches no layer."""
        from .criteria import Pattern, Quality, Sparsity

        if self.quality is not None:
            return Quality(self, model)
        return Pattern(self, model) if self.pattern is not None else Sparsity(self, model, self._curves())

    def _curves(self) -> Curves | None:
        """What was measured of the layers, read once."""
        from .curves import read

        if self.sensitivity is None:
            return None
        if self.sensitivity not in self.curves:
            self.curves[self.sensitivity] = read(self.sensitivity)
        return self.curves[self.sensitivity]

    def _fit_checkpoint(self, trainer: Trainer) -> None:
        """Bring what a checkpoint held to the device, checked against the model."""
        import torch

        layers = trainer.layers()
        for kind, tensors, dtype in (("mask", self.masks, torch.bool), ("dropped weights", self.aside, None)):
            for name, tensor in tensors.items():
                weight = self._weight(trainer, name) if name in layers else None
                fits = isinstance(tensor, torch.Tensor) and weight is not None and tensor.shape == weight.shape
                if not fits or tensor.dtype != (dtype or weight.dtype) or name not in self.masks:  # type: ignore[union-attr]
                    raise MakeweightError(f"the checkpoint's {kind} of {name!r} does not fit the model")
                tensors[name] = _like(weight, tensor)
        self.dropping = {name: 1 - self.masks[name] for name in self.aside}

    def _done(self, trainer: Trainer) -> float:
        """The fraction of the schedule that has passed; below 0 before it begins."""
        end = max(self.begin, trainer.stage.options.epochs * 2 / 3) if self.end is None else self.end
        passed = trainer.progress - self.begin
        return passed / (end - self.begin) if end > self.begin or passed < 0 else 1.0

    def _revise(self, trainer: Trainer) -> None:
        """Make the masks anew where the schedule, or surgery until it is over, asks for it; the first process decides.

        After the end of the schedule masks are what they are: surgery too ends there, so that the network converges.
        """
        from .idle import idle_last, varying_inputs

        criterion, done = self.criterion(trainer.model), self._done(trainer)
        operating = self.surgery and 0 <= done < 1
        now = {
            name: criterion.amount(self.initial.get(name, 0.0), target, self.schedule, done, self.rounds or 5)
            if done >= 0
            else self.initial.get(name, 0.0)
            for name, target in criterion.targets.items()
        }
        if not operating and now == self.reached:
            self.aside, self.dropping = {}, {}
            return
        self.reached = now
        if self.masks or any(now.values()):  # a dense stage needs none
            whole = {name: self._whole(trainer, name) for name in now}
            scores = {name: self._scores(name, weight) for name, weight in whole.items()}
            if self.idle_first:
                scores = idle_last(scores, varying_inputs(trainer, scores))
            self._adopt(trainer, whole, criterion.masks(whole, scores, now), operating)

    def _scores(self, name: str, weight: Tensor) -> Tensor:
        """The magnitudes that masks are made by; without surgery what was dropped cannot come back."""
        import torch

        from . import surgery

        mask = self.masks.get(name)
        if self.surgery:
            return surgery.scores(weight, mask)
        return weight.abs() if mask is None else torch.where(mask != 0, weight.abs(), -1)

    def _adopt(self, trainer: Trainer, whole: dict[str, Tensor], masks: dict[str, Tensor], operating: bool) -> None:
        """Put masks in force on the dense weights that they were made for."""
        self.aside, self.dropping = {}, {}
        for name, mask in masks.items():
            weight = self._weight(trainer, name).data
            self.masks[name] = _like(weight, from_first(trainer.accelerator, mask.to(weight)))
            if self.surgery:
                weight.copy_(whole[name])
            if operating:
                self.dropping[name] = 1 - self.masks[name]
                self.aside[name] = whole[name] * self.dropping[name]
        check_equal(trainer.accelerator, "masks", self.masks)
        self._project(trainer)

    def _follow(self, trainer: Trainer) -> None:
        """Move the dropped weights by what the optimizer's step gave to them."""
        from .surgery import follow

        weights = [self._weight(trainer, name).data for name in self.aside]
        follow(list(self.aside.values()), weights, list(self.dropping.values()))

    def _whole(self, trainer: Trainer, name: str) -> Tensor:
        """A layer's dense weight: what its mask keeps, and under surgery what is kept aside."""
        from .surgery import whole

        weight = self._weight(trainer, name).detach()
        return whole(weight, self.masks[name], self.aside[name]) if name in self.aside else weight

    def _project(self, trainer: Trainer) -> None:
        """Set what the masks drop to zero, in place: one call over all layers."""
        import torch

        if self.masks:
            weights = [self._weight(trainer, name).data for name in self.masks]
            torch._foreach_mul_(weights, list(self.masks.values()))

    def _weight(self, trainer: Trainer, name: str) -> nn.Parameter:
        from makeweight.layers import leaf_weight

        return leaf_weight(attrgetter(name)(trainer.model) if name else trainer.model)


def _like(weight: Any, tensor: Tensor) -> Tensor:
    """The tensor on the weight's device, in its dtype and memory layout, so that one kernel runs over both."""
    import torch

    return torch.empty_like(weight, requires_grad=False).copy_(tensor)
