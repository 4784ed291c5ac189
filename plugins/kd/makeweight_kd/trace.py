"""What a model calls in one forward: the modules in their order, and what goes through them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate.utils import slice_tensors
from torch import Tensor, nn

from makeweight import UsageError
from makeweight.plugin import KINDS, evaluating, logits_of

EXAMPLES = 4
"""of a batch that are enough to see shapes"""


class Call(NamedTuple):
    """A module's call: its name, its first input and its output."""

    name: str
    input: Any
    output: Any


class Trace:
    """The calls of one forward of a few examples, each module's as it ended: what is inside a module stands before it.

    It runs in eval, without gradients, and without touching batch norm's statistics. Outputs are held as long as the
    trace is, so that each is a tensor of its own. Raises UsageError for a model that gives no logits [B, classes].
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
            raise UsageError(f"kd: the model's output has shape {shape}: expected logits, [examples, classes]")
        self.logits, self.classes = logits, logits.shape[1]

    def _keep(self, name: str, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        self.calls.append(Call(name, next(iter([*inputs, *named.values()]), None), output))

    def of(self, model: nn.Module) -> Trace:
        """The same batch through another model."""
        return Trace(model, self.forward, self.batch)

    @property
    def names(self) -> list[str]:
        """The names of the modules that were called, in the order of their first calls' ends."""
        return list(dict.fromkeys(call.name for call in self.calls))

    @property
    def last_layer(self) -> Call:
        """The last call of a Linear or Conv, one without a name where there is none."""
        modules = dict(self.model.named_modules())
        layers = [call for call in self.calls if isinstance(modules[call.name], KINDS)]
        return layers[-1] if layers else Call("", None, None)

    def output_of(self, name: str, option: str = "sections") -> Tensor:
        """The output of a module. Raises UsageError for one that is not called just once, or gives no tensor."""
        found = [call.output for call in self.calls if call.name == name]
        if len(found) != 1:
            raise UsageError(f"kd.{option} {name}: it is called {len(found)} times: name a module that is called once")
        if not isinstance(found[0], Tensor) or found[0].ndim not in (2, 3, 4):
            raise UsageError(f"kd.{option} {name}: it gives no tensor [B, C, H, W], [B, T, D] or [B, D]: name another")
        return found[0]
