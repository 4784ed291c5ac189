"""All of the core that plugins may import, beside `makeweight` and `makeweight.testing`.

`docs/plugins.md` documents each name; nothing else of the core is part of the contract. Names are imported when they
are first asked for, so that a plugin may import them at the top of its module: torch comes only with those that need
it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

API = 1
"""the number of the contract; it grows when a hook or a name changes its meaning or goes"""

if TYPE_CHECKING:  # for type checkers alone: `_HOME` says it at run time
    # ruff: noqa: F401
    from .artifact import Artifact, blamed_on, decode, is_export, load, load_any, load_plain, load_tensors, read
    from .artifact import write_bytes as write_bytes
    from .batches import find_first_tensor
    from .checked import checked_count, checked_keys, checked_number, checked_table, checked_tensor, checked_tensors
    from .commands import add_limit
    from .console import console, print_table
    from .distributed import agree, check_equal, from_first
    from .errors import MakeweightError, UsageError, did_you_mean
    from .files import spool_beside, write_text, written_aside
    from .hookspecs import hookimpl
    from .layers import KINDS, by_glob, layers, leaf_weight, parameter, weight_name
    from .lazy import LazyTensors
    from .masks import Masks
    from .models import build as build_model
    from .models import is_reference
    from .modes import evaluating
    from .options import StageOptions, require
    from .report import label, percent
    from .session import Session, drawn
    from .state import restore
    from .stored import DTYPES, FileBytes, Layout, Stored, bytes_of, check_names, layout_of, read_header
    from .stored import write_in_pieces as write_in_pieces
    from .structure import Structure, original_copy, original_of, replace
    from .task import Task, logits_of, target_of
    from .trainer import Trainer
    from .untrusted import parse_json, read_json

_HOME = {
    "artifact": ("Artifact blamed_on decode is_export load load_any load_plain load_tensors read write_bytes"),
    "batches": "find_first_tensor",
    "checked": "checked_count checked_keys checked_number checked_table checked_tensor checked_tensors",
    "commands": "add_limit",
    "console": "console print_table",
    "distributed": "agree check_equal from_first",
    "errors": "MakeweightError UsageError did_you_mean",
    "files": "spool_beside write_text written_aside",
    "hookspecs": "hookimpl",
    "layers": "KINDS by_glob layers leaf_weight parameter weight_name",
    "lazy": "LazyTensors",
    "masks": "Masks",
    "models": "build_model is_reference",
    "modes": "evaluating",
    "options": "StageOptions require",
    "report": "label percent",
    "session": "Session drawn",
    "state": "restore",
    "stored": "DTYPES FileBytes Layout Stored bytes_of check_names layout_of read_header write_in_pieces",
    "structure": "Structure original_copy original_of replace",
    "task": "Task logits_of target_of",
    "trainer": "Trainer",
    "untrusted": "parse_json read_json",
}
"""names by the module that they come from"""
_MODULES = {name: module for module, names in _HOME.items() for name in names.split()}
_RENAMED = {"build_model": "build"}
__all__ = ["API", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'makeweight.plugin' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __package__), _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return list(__all__)
