"""What modules put out while the network trains, kept for the loss terms of one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Capture:
    """Values by key, of which nothing outlives a training step.

    Those of the model's modules are computed inside its forward, in its precision, and belong to the micro-batch that
    went through it last. An evaluation within a step captures nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found: dict[tuple[str, ...], Any] = {}
        self.is_on = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """A training step."""
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False
            self.found.clear()

    def watch(self, name: str, key: tuple[str, ...], value: Callable[[tuple[Any, ...], Tensor], Any]) -> None:
        """Keep `value` of a module's inputs and output."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if self.is_on and self.model.training:  # of the model as a whole: a frozen module may be in eval
                self.found[key] = value(inputs, output)

        self.model.get_submodule(name).register_forward_hook(hook)  # a method would be copied with the model
