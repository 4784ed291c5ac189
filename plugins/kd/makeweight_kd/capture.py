"""Capture module outputs during a training step, for the loss terms of that step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Capture:
    """Values by key, cleared at the end of every training step.

    The values are computed in hooks inside the model's forward, hence in its precision, and belong to the latest
    micro-batch. An evaluation during a step captures nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found: dict[tuple[str, ...], Any] = {}
        self.is_on = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Capture during this context, which surrounds one training step."""
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False
            self.found.clear()

    def watch(self, name: str, key: tuple[str, ...], value: Callable[[tuple[Any, ...], Tensor], Any]) -> None:
        """Store value(inputs, output) of the module `name` under `key` at each of its calls."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if self.is_on and self.model.training:  # asks the whole model: a frozen module may be in eval mode
                self.found[key] = value(inputs, output)

        self.model.get_submodule(name).register_forward_hook(hook)  # a method would be copied with the model
