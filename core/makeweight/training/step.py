"""The small parts of a training step: the innermost hook, what is prepared for it, and a running sum of its losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..hookspecs import hookimpl

if TYPE_CHECKING:
    from ..trainer import Trainer


class Sum:
    """A running sum of scalars in double precision. One on another device stays there: to read it means to wait."""

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
    """The core's own training step as the innermost hook: a plugin's plain `on_batch` takes its place."""

    @hookimpl
    def on_batch(self, trainer: Trainer, batches: list[Any]) -> Tensor:
        return trainer.take_step(batches)


def zero_of(tensors: Iterable[Tensor]) -> Tensor | float:
    """A zero whose gradient with respect to these tensors is zero: it keeps them in the graph of a step."""
    empty = [tensor.reshape(-1)[:0] for tensor in tensors]
    return torch.cat(empty).sum() if empty else 0.0


class WithAuxiliary(nn.Module):
    """What is prepared in place of the model where there are auxiliary modules: both, so that both are trained."""

    def __init__(self, model: nn.Module, auxiliary: nn.ModuleDict) -> None:
        super().__init__()
        self.model, self.auxiliary = model, auxiliary

    def __getattr__(self, name: str) -> Any:
        """What a user's own call of the model asks for beside calling it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.model(*inputs, **named)
