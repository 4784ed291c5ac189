"""What a model calls in one forward: the modules in their order, and what goes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from makeweight import UsageError
from makeweight.task import logits_of


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval, and no gradients; then each module's mode is put back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass
class Call:
    """A module's call: its name, its first input and its output."""

    name: str
    input: Any
    output: Any


class Trace:
    """The calls of one forward, each module's as it ended: what is inside a module stands before it.

    It runs in eval, without gradients, and without touching batch norm's statistics. Outputs are held as long as the
    trace is, so that each is a tensor of its own.
    """

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any], batch: Any) -> None:
        self.model = model
        self.calls: list[Call] = []
        named = [(name, module) for name, module in model.named_modules() if name]
        handles = [module.register_forward_hook(self._watch(name), with_kwargs=True) for name, module in named]
        try:
            with evaluating(model):
                self.output = forward(model, batch)
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Sequence[Any], named: dict[str, Any], output: Any) -> None:
            self.calls.append(Call(name, next(iter([*inputs, *named.values()]), None), output))

        return hook

    @property
    def names(self) -> list[str]:
        """The names of the modules that were called, in the order of their first calls' ends."""
        return list(dict.fromkeys(call.name for call in self.calls))

    @property
    def logits(self) -> Tensor:
        """The model's logits [B, classes]. Raises UsageError for an output of another shape."""
        logits = logits_of(self.output)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UsageError(f"kd: the model's output has shape {shape}: expected logits, [examples, classes]")
        return logits

    def last(self, name: str) -> Call:
        """The last call of a module."""
        return next(call for call in reversed(self.calls) if call.name == name)

    def output_of(self, name: str, option: str = "sections") -> Tensor:
        """The output of a module. Raises UsageError for one that is not called just once, or gives no tensor."""
        found = [call.output for call in self.calls if call.name == name]
        if len(found) != 1:
            raise UsageError(f"kd.{option} {name}: it is called {len(found)} times: name a module that is called once")
        if not isinstance(found[0], Tensor) or found[0].ndim not in (2, 3, 4):
            raise UsageError(f"kd.{option} {name}: it gives no tensor [B, C, H, W], [B, T, D] or [B, D]: name another")
        return found[0]
