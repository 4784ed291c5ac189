"""Training and evaluation mode: each module keeps its own, so that what a user froze stays frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval; afterwards each is put back into its own mode. Gradients are left as they are."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def begin_training(model: nn.Module) -> None:
    """Put a model that is in eval as a whole into training mode; in any other, each module's own mode is meant."""
    if not model.training:
        model.train()
