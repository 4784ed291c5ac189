"""Parts of a training step: the core's `on_batch`, the module prepared for it, and running sums of losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..hookspecs import hookimpl

if TYPE_CHECKING:
    from ..trainer import Trainer


class Sum:
    """A running sum of scalars in double precision. It stays on the device of the values; reading it synchronises."""

    def __init__(self, total: float | Tensor = 0.0) -> None:
        self.total = total

    def add(self, value: Tensor) -> None:
        if value.is_cpu:
            self.total = self.total + value.item()
        else:
            self.total = self.total + (value.detach().float() if value.is_mps else value.detach().double())

    def __float__(self) -> float:
        return float(self.total)


class Step:
    """The innermost `on_batch`: the core's own training step, unless a plugin replaces it."""

    @hookimpl
    def on_batch(self, trainer: Trainer, batches: list[Any]) -> Tensor:
        return trainer.take_step(batches)


def zero_of(tensors: Iterable[Tensor]) -> Tensor | float:
    """A scalar zero that depends on `tensors` with zero gradient. Added to the loss, it keeps them in the graph."""
    empty = [tensor.reshape(-1)[:0] for tensor in tensors]
    return torch.cat(empty).sum() if empty else 0.0


class WithAuxiliary(nn.Module):
    """The model and its auxiliary modules as one module, for `accelerator.prepare`. Its forward is the model's."""

    def __init__(self, model: nn.Module, auxiliary: nn.ModuleDict) -> None:
        super().__init__()
        self.model, self.auxiliary = model, auxiliary

    def __getattr__(self, name: str) -> Any:
        """Look unknown attributes up in the model, for a user's `forward` function that reads some."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.model(*inputs, **named)
