"""Distillation for makeweight: from teachers, or of the network from itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plugin import Distillation

if TYPE_CHECKING:
    from torch import nn

    from .exits import Exits

__all__ = ["Distillation", "exits_of"]


def exits_of(model: nn.Module) -> Exits:
    """The exits of a model that was loaded with them. Raises MakeweightError for one that was exported without."""
    from .exits import exits_of

    return exits_of(model)
