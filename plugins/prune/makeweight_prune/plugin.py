"""The plugin: updates the masks during training and checks the export."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from makeweight import MakeweightError, hookimpl
from makeweight.plugin import check_equal

from .options import PruneOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from makeweight import Artifact, Trainer
    from makeweight.plugin import StageOptions

    from .criteria import Criterion

MOST_REACHED = 1000
"""upper limit of `quality`, in standard deviations"""


@dataclass(eq=False)
class Prune(PruneOptions):
    """Magnitude pruning: set the smallest weights to zero on a schedule and keep them zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.criterion: Criterion | None = None  # set by on_init
        self.initial: dict[str, float] = {}  # amount by layer at the start of the stage
        self.reached: dict[str, float] = {}  # amount by layer of the current masks
        self.stored: dict[str, Tensor] = {}  # surgery: pruned weights by layer, zero where kept
        self.dropping: dict[str, Tensor] = {}  # complements of the masks, in the weights' dtype

    @hookimpl
    def on_check(self, options: StageOptions, model: nn.Module | None) -> str:
        from .criteria import criterion_for, described

        self.check_stage(options.epochs)
        if model is None:
            return "layers are looked up when the structure is decided"
        return described(self, criterion_for(self, model), model)

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        from .criteria import criterion_for

        self.criterion = criterion_for(self, trainer.model)
        if trainer.resumed:
            self._fit_state(trainer)
            if trainer.ending:
                self._restore_amounts(trainer)
        else:
            self.initial = self.criterion.start(self.masks(trainer))
            self.reached, self.stored = {}, {}
            self._update_masks(trainer)

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer) -> Generator[None, Any, Any]:
        loss = yield
        if self.stored:
            self._update_stored(trainer)
        if trainer.step % self.steps_between == 0:
            trainer.masks.apply()
            self._update_masks(trainer)
        return loss

    @hookimpl
    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        from .magnitude import measured

        assert self.criterion is not None
        self._update_masks(trainer)
        weights = {name: _weight(trainer, name).detach() for name in self.criterion.targets}
        check_equal(trainer.accelerator, "pruned weights", weights)
        check_equal(trainer.accelerator, "stored pruned weights", self.stored)
        metrics["sparsity"] = measured(weights)
        metrics |= {f"sparsity/{name}": measured({name: weight}) for name, weight in weights.items() if name}

    @hookimpl
    def on_export(self, trainer: Trainer, artifact: Artifact) -> None:
        """Check that the exported weights reach the targets. Raises MakeweightError."""
        from makeweight.plugin import weight_name

        assert self.criterion is not None
        if not artifact.trial:
            tensors = {name: artifact.tensors[weight_name(name)] for name in self.criterion.targets}
            self.criterion.check(tensors, self.masks(trainer), self.reached)

    def state_dict(self) -> dict[str, Any]:
        """Initial and current amounts, and the weights stored by surgery. The trainer saves the masks."""
        return {"initial": self.initial, "reached": self.reached, "stored": self.stored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from makeweight.plugin import checked_number, checked_table, checked_tensors

        self.stored = checked_tensors(state, "stored")
        initial, reached = checked_table(state, "initial"), checked_table(state, "reached")
        self.initial = {name: checked_number(initial, name, 0, 1) for name in initial}
        self.reached = {name: checked_number(reached, name, 0, MOST_REACHED) for name in reached}
        if whole := [name for name, value in self.initial.items() if value == 1]:
            raise ValueError(f"the initial sparsity of {whole[0]!r} is 1, expected less")

    def masks(self, trainer: Trainer) -> dict[str, Tensor]:
        """The masks by layer name, of the weights' shapes; True keeps."""
        return {name.removesuffix("weight").removesuffix("."): mask for name, mask in trainer.masks.of("prune").items()}

    def _fit_state(self, trainer: Trainer) -> None:
        """Move a checkpoint's stored weights to the device, in the shapes of the present model.

        Raises MakeweightError if they do not fit the model.
        """
        import torch

        from makeweight.plugin import weight_name

        for name, tensor in list(self.stored.items()):
            carried = trainer.carried(weight_name(name), tensor) if isinstance(tensor, torch.Tensor) else None
            if carried is not None and carried.dtype != _weight(trainer, name).dtype:
                carried = None
            if carried is None and not trainer.ending:
                raise MakeweightError(f"the checkpoint's stored pruned weights of {name!r} do not fit the model")
            del self.stored[name]
            if carried is not None:
                self.stored[name] = _like(_weight(trainer, name), carried)
        masks = self.masks(trainer)
        if unknown := [name for name in self.stored if name not in masks]:
            raise MakeweightError(f"the checkpoint has pruned weights of {unknown[0]!r} but no mask for it")
        self.dropping = {name: _like(each, ~masks[name]) for name, each in self.stored.items()}

    def _restore_amounts(self, trainer: Trainer) -> None:
        """Prune the layers of a new structure to their former amounts: the change may have removed zeros."""
        masked = self.masks(trainer)
        now = {name: value for name, value in self.reached.items() if name in masked}
        if now:
            self._adopt(trainer, self._new_masks(trainer, now), False)

    def _update_masks(self, trainer: Trainer) -> None:
        """Make new masks if the scheduled amounts changed, or while surgery is active.

        The masks are fixed after the end of the schedule, with surgery too, so that the network converges.
        """
        assert self.criterion is not None
        done = self.passed(trainer.progress, trainer.options.epochs)
        operating = self.surgery and 0 <= done < 1
        now = self.criterion.amounts(self.initial, self.schedule, done, self.rounds or 5)
        if not operating and now == self.reached:
            self.stored, self.dropping = {}, {}
            return
        self.reached = now
        if trainer.masks.of("prune") or any(now.values()):  # a stage without pruning needs no masks
            self._adopt(trainer, self._new_masks(trainer, now), operating)

    def _new_masks(self, trainer: Trainer, now: Mapping[str, float]) -> dict[str, Tensor]:
        """Masks by layer for the amounts `now`, made from the dense weights."""
        from .idle import idle_last, varying_inputs

        assert self.criterion is not None
        masks = self.masks(trainer)
        dense = {name: self._dense(trainer, name, masks) for name in now}
        scores = {name: self._scores(weight, masks.get(name)) for name, weight in dense.items()}
        if self.idle_first:
            scores = idle_last(scores, varying_inputs(trainer, scores))
        return self.criterion.masks(dense, scores, now)

    def _scores(self, weight: Tensor, mask: Tensor | None) -> Tensor:
        """Scores of the dense weights; without surgery pruned weights score -1, so that they stay pruned."""
        import torch

        from . import surgery

        if self.surgery:
            return surgery.scores(weight, mask)
        return weight.abs() if mask is None else torch.where(mask, weight.abs(), -1)

    def _adopt(self, trainer: Trainer, masks: Mapping[str, Tensor], operating: bool) -> None:
        """Apply new masks by layer; with surgery restore the dense weights first, then store their pruned part."""
        from makeweight.plugin import weight_name

        before = self.masks(trainer)
        if self.surgery:
            dense = {name: self._dense(trainer, name, before) for name in masks}
            for name, weight in dense.items():
                _weight(trainer, name).data.copy_(weight)
        named = {weight_name(name): mask for name, mask in {**before, **masks}.items()}
        self.stored, self.dropping = {}, {}
        trainer.masks.set("prune", named)
        if operating:
            now = self.masks(trainer)
            self.dropping = {name: _like(_weight(trainer, name), ~now[name]) for name in masks}
            self.stored = {name: dense[name] * self.dropping[name] for name in masks}

    def _update_stored(self, trainer: Trainer) -> None:
        """Add the optimizer's update to the stored pruned weights."""
        from .surgery import follow

        weights = [_weight(trainer, name).data for name in self.stored]
        follow(list(self.stored.values()), weights, list(self.dropping.values()))

    def _dense(self, trainer: Trainer, name: str, masks: Mapping[str, Tensor]) -> Tensor:
        """A copy of a layer's dense weight: the model's weight, and the stored pruned weights of surgery."""
        from .surgery import whole

        weight = _weight(trainer, name).detach()
        return whole(weight, masks[name], self.stored[name]) if name in self.stored else weight.clone()


def _weight(trainer: Trainer, layer: str) -> nn.Parameter:
    from makeweight.plugin import parameter, weight_name

    return parameter(trainer.model, weight_name(layer))


def _like(weight: Tensor, tensor: Tensor) -> Tensor:
    """Copy of the tensor with the weight's device, dtype and memory layout, so that one kernel runs over both."""
    import torch

    return torch.empty_like(weight, requires_grad=False).copy_(tensor)
