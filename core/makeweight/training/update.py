"""One optimizer step: forward and backward passes of its micro-batches, and the parameter update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .optimizers import build_optimizer, parameter_groups
from .step import WithAuxiliary, zero_of

if TYPE_CHECKING:
    from ..trainer import Trainer


class Update:
    """The prepared model and optimizer of a stage. Plugins may change `trainer.losses` between steps."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.accelerator, self.clip_norm = trainer, trainer.accelerator, trainer.options.clip_norm
        model, auxiliary = trainer.model, trainer.auxiliary
        mixed = self.accelerator.mixed_precision not in (None, "no")  # accelerate would patch the model's forward
        whole = WithAuxiliary(model, auxiliary) if len(auxiliary) > 0 or mixed else model
        named = dict(model.named_parameters()) | dict(auxiliary.named_parameters("auxiliary"))
        groups = parameter_groups(named, trainer.groups, trainer.options.weight_decay)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.prepared = self.accelerator.prepare_model(whole.to(self.accelerator.device))
        wrapped = self.accelerator.prepare_optimizer(build_optimizer(groups, trainer.options))
        self.optimizer: torch.optim.Optimizer = wrapped.optimizer
        # accelerate's wrappers take longer than a step of a tiny network: its `backward` divides by 1 and adds a node
        # to the graph. Only a gradient scaler needs the wrappers.
        scaled = self.accelerator.scaler is not None
        self._optimizer = wrapped if scaled else self.optimizer
        self._run_backward = self.accelerator.backward if scaled else Tensor.backward

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of every parameter group to `rate` times its `lr_scale`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def take(self, batches: list[Any]) -> Tensor:
        """Run one optimizer step over its micro-batches. Returns their mean loss, a detached scalar."""
        for parameter in self.parameters:  # ten times faster than optimizer.zero_grad
            parameter.grad = None
        losses = []
        for batch in batches[:-1]:
            with self.accelerator.no_sync(self.prepared):
                losses.append(self._backward(batch, len(batches)))
        loss = self._backward(batches[-1], len(batches))
        if self.clip_norm is not None:
            if self.accelerator.scaler is not None:
                self.accelerator.unscale_gradients(self._optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self._optimizer.step()
        return torch.stack([*losses, loss]).mean() if losses else loss

    def _backward(self, batch: Any, micro_batches: int) -> Tensor:
        trainer = self.trainer
        output = trainer.task.forward(self.prepared, batch)
        values = [term(batch, output) for term in trainer.losses.values()]
        loss = values[0]
        for value in values[1:]:
            loss = loss + value
        whole = loss
        for unused in trainer.is_idle:
            whole = whole + zero_of(unused())
        self._run_backward(whole if micro_batches == 1 else whole / micro_batches)
        for name, value in zip(trainer.losses, values, strict=True):
            trainer.sums[name].add(value)
        return loss.detach()
