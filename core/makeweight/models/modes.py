"""Switches between training and evaluation mode, and preserves modules that the user set to evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set every module to evaluation mode inside the context, and restore each module's mode after it.

    Gradients are not disabled.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def begin_training(model: nn.Module) -> None:
    """Set a model in evaluation mode to training mode. In a model in training mode, every module keeps its own mode."""
    if not model.training:
        model.train()
