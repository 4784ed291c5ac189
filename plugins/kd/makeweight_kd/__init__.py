"""Knowledge distillation for makeweight: from teachers, or self-distillation with early exits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .plugin import Distillation

if TYPE_CHECKING:
    from .exits import exits_of

__all__ = ["Distillation", "exits_of"]


def __getattr__(name: str) -> Any:
    """Import `exits_of` on first use, because it imports torch."""
    if name != "exits_of":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .exits import exits_of

    return exits_of
