"""makeweight: a minimal Accelerate-powered trainer whose loop is open to plugins that get networks down to weight."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artifact import Artifact, load, load_tensors
    from .data import Data
    from .errors import MakeweightError, UsageError
    from .hookspecs import hookimpl
    from .options import LoopOptions, Stage
    from .run import Run
    from .trainer import Trainer

__version__ = "0.2.0"
__all__ = [
    "Artifact", "Data", "LoopOptions", "MakeweightError", "Run", "Stage", "Trainer", "UsageError", "hookimpl", "load",
    "load_tensors",
]  # fmt: skip

_HOME = {
    "Artifact": "artifact",
    "Data": "data",
    "LoopOptions": "options",
    "MakeweightError": "errors",
    "Run": "run",
    "Stage": "options",
    "Trainer": "trainer",
    "UsageError": "errors",
    "hookimpl": "hookspecs",
    "load": "artifact",
    "load_tensors": "artifact",
}


def __getattr__(name: str) -> Any:
    """Names are imported when first asked for, so that `import makeweight` needs no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'makeweight' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
