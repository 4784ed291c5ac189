"""makeweight: a minimal PyTorch trainer on Accelerate. Plugins on its training loop compress networks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.by_name import Data
    from .errors import MakeweightError, UsageError
    from .files.artifact import Artifact
    from .hookspecs import hookimpl
    from .loading import load, load_tensors
    from .options import LoopOptions, Stage
    from .run import Run
    from .trainer import Trainer

__version__ = "0.2.0"
__all__ = [
    "Artifact", "Data", "LoopOptions", "MakeweightError", "Run", "Stage", "Trainer", "UsageError", "hookimpl", "load",
    "load_tensors",
]  # fmt: skip

_HOME = {
    "Artifact": "files.artifact",
    "Data": "data.by_name",
    "LoopOptions": "options",
    "MakeweightError": "errors",
    "Run": "run",
    "Stage": "options",
    "Trainer": "trainer",
    "UsageError": "errors",
    "hookimpl": "hookspecs",
    "load": "loading",
    "load_tensors": "loading",
}


def __getattr__(name: str) -> Any:
    """Import public names on first access, so that `import makeweight` does not import torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'makeweight' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
