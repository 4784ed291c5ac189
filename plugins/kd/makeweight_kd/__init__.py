"""Distillation for makeweight: from teachers, or of the network from itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .plugin import Distillation

if TYPE_CHECKING:
    from .exits import exits_of

__all__ = ["Distillation", "exits_of"]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    if name != "exits_of":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .exits import exits_of

    return exits_of
