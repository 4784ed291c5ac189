"""The names of the core that plugins may import, in addition to those of `makeweight` and `makeweight.testing`.

`docs/plugins.md` documents each name. No other module of the core is part of the contract. A name is imported on first
access, and torch is imported only by the names that need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

API = 1
"""version of the contract; increased when a hook or a name is removed or changes its meaning"""

if TYPE_CHECKING:  # for type checkers only; at run time `_HOME` is used
    # ruff: noqa: F401
    from .commands.pictures import label
    from .commands.session import Session, drawn
    from .commands.tables import percent
    from .commands.verb import add_limit
    from .console import console, print_table
    from .data.batches import find_first_tensor
    from .errors import MakeweightError, UsageError, did_you_mean
    from .files.artifact import Artifact, blamed_on, is_export, read, write_bytes
    from .files.checked import (
        checked_count,
        checked_keys,
        checked_number,
        checked_table,
        checked_tensor,
        checked_tensors,
    )
    from .files.file_bytes import FileBytes
    from .files.lazy_tensors import LazyTensors
    from .files.safetensors_file import check_names, read_header, write_in_pieces
    from .files.tensor_bytes import DTYPES, Layout, Stored, bytes_of, layout_of
    from .files.untrusted import parse_json, read_json
    from .files.writing import spool_beside, write_text, written_aside
    from .hookspecs import hookimpl
    from .loading import decode, load, load_any, load_plain, load_tensors
    from .models.by_name import build as build_model
    from .models.by_name import is_reference
    from .models.copies import original_copy, original_of
    from .models.layers import KINDS, by_glob, layers, leaf_weight, parameter, weight_name
    from .models.modes import evaluating
    from .models.state import restore
    from .models.structure import Structure, replace
    from .options import StageOptions, require
    from .task import Task, logits_of, target_of
    from .trainer import Trainer
    from .training.distributed import agree, check_equal, from_first
    from .training.masks import Masks

_HOME = {
    "commands.pictures": "label",
    "commands.session": "Session drawn",
    "commands.tables": "percent",
    "commands.verb": "add_limit",
    "console": "console print_table",
    "data.batches": "find_first_tensor",
    "errors": "MakeweightError UsageError did_you_mean",
    "files.artifact": "Artifact blamed_on is_export read write_bytes",
    "files.checked": "checked_count checked_keys checked_number checked_table checked_tensor checked_tensors",
    "files.file_bytes": "FileBytes",
    "files.lazy_tensors": "LazyTensors",
    "files.safetensors_file": "check_names read_header write_in_pieces",
    "files.tensor_bytes": "DTYPES Layout Stored bytes_of layout_of",
    "files.untrusted": "parse_json read_json",
    "files.writing": "spool_beside write_text written_aside",
    "hookspecs": "hookimpl",
    "loading": "decode load load_any load_plain load_tensors",
    "models.by_name": "build_model is_reference",
    "models.copies": "original_copy original_of",
    "models.layers": "KINDS by_glob layers leaf_weight parameter weight_name",
    "models.modes": "evaluating",
    "models.state": "restore",
    "models.structure": "Structure replace",
    "options": "StageOptions require",
    "task": "Task logits_of target_of",
    "trainer": "Trainer",
    "training.distributed": "agree check_equal from_first",
    "training.masks": "Masks",
}
"""public names by the module that defines them, separated by spaces"""
_MODULES = {name: module for module, names in _HOME.items() for name in names.split()}
_RENAMED = {"build_model": "build"}
__all__ = ["API", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'makeweight.plugin' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __package__), _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return list(__all__)
