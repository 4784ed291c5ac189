"""Trace one forward of a model: its module calls in order, with their inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate.utils import slice_tensors
from torch import Tensor, nn

from makeweight.plugin import KINDS, UsageError, evaluating, logits_of

EXAMPLES = 4
"""examples in a trace: enough to see shapes, and to split a batch"""


class Call(NamedTuple):
    """A module's call: its name, its first input and its output."""

    name: str
    input: Any
    output: Any


class Trace:
    """The module calls of one forward on a few examples, in the order in which they end: children before parents.

    The model runs in eval mode without gradients, so its batch norm statistics do not change. The trace keeps all
    outputs alive, so that no two share memory by accident. Raises UsageError for a model whose output is not logits
    [B, classes].
    """

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any], batch: Any) -> None:
        self.model, self.forward, self.batch = model, forward, slice_tensors(batch, slice(0, EXAMPLES))
        self.calls: list[Call] = []
        named = [(name, module) for name, module in model.named_modules() if name]
        handles = [module.register_forward_hook(partial(self._keep, name), with_kwargs=True) for name, module in named]
        try:
            with evaluating(model), torch.no_grad():
                logits = logits_of(forward(model, self.batch))
        finally:
            for handle in handles:
                handle.remove()
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UsageError(f"kd: the model's output has shape {shape}: expected logits of shape [examples, classes]")
        self.logits, self.classes = logits, logits.shape[1]

    def _keep(self, name: str, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        self.calls.append(Call(name, next(iter([*inputs, *named.values()]), None), output))

    def of(self, model: nn.Module) -> Trace:
        """A trace of another model on the same batch."""
        return Trace(model, self.forward, self.batch)

    @property
    def names(self) -> list[str]:
        """The names of the called modules, in the order in which their first calls end."""
        return list(dict.fromkeys(call.name for call in self.calls))

    @property
    def last_layer(self) -> Call:
        """The last call of a Linear or Conv layer; a call with an empty name where there is none."""
        modules = dict(self.model.named_modules())
        layers = [call for call in self.calls if isinstance(modules[call.name], KINDS)]
        return layers[-1] if layers else Call("", None, None)

    def output_of(self, name: str, option: str = "sections") -> Tensor:
        """The output [B, C, H, W], [B, T, D] or [B, D] of a module.

        Raises UsageError, naming the option, for a module that is not called exactly once, or has another output.
        """
        found = [call.output for call in self.calls if call.name == name]
        if len(found) != 1:
            raise UsageError(
                f"kd.{option} {name}: expected a module called once, this one is called {len(found)} times"
            )
        if not isinstance(found[0], Tensor) or found[0].ndim not in (2, 3, 4):
            raise UsageError(f"kd.{option} {name}: expected a module with an output [B, C, H, W], [B, T, D] or [B, D]")
        return found[0]
