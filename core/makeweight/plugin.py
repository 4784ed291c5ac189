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
    # "X as X" tells type checkers that a name is exported
    from .commands.plots import label as label
    from .commands.session import Session as Session
    from .commands.session import drawn as drawn
    from .commands.tables import percent as percent
    from .commands.verb import add_limit as add_limit
    from .console import console as console
    from .console import print_table as print_table
    from .data.batches import find_first_tensor as find_first_tensor
    from .errors import MakeweightError as MakeweightError
    from .errors import UsageError as UsageError
    from .errors import did_you_mean as did_you_mean
    from .files.artifact import Artifact as Artifact
    from .files.artifact import blamed_on as blamed_on
    from .files.artifact import is_export as is_export
    from .files.artifact import read as read
    from .files.artifact import write_bytes as write_bytes
    from .files.checked import checked_count as checked_count
    from .files.checked import checked_keys as checked_keys
    from .files.checked import checked_number as checked_number
    from .files.checked import checked_table as checked_table
    from .files.checked import checked_tensor as checked_tensor
    from .files.checked import checked_tensors as checked_tensors
    from .files.file_bytes import FileBytes as FileBytes
    from .files.lazy_tensors import LazyTensors as LazyTensors
    from .files.safetensors_file import check_names as check_names
    from .files.safetensors_file import read_header as read_header
    from .files.safetensors_file import write_in_pieces as write_in_pieces
    from .files.tensor_bytes import DTYPES as DTYPES
    from .files.tensor_bytes import Layout as Layout
    from .files.tensor_bytes import Stored as Stored
    from .files.tensor_bytes import bytes_of as bytes_of
    from .files.tensor_bytes import layout_of as layout_of
    from .files.untrusted import parse_json as parse_json
    from .files.untrusted import read_json as read_json
    from .files.writing import spool_beside as spool_beside
    from .files.writing import write_text as write_text
    from .files.writing import written_aside as written_aside
    from .hookspecs import hookimpl as hookimpl
    from .loading import decode as decode
    from .loading import load as load
    from .loading import load_any as load_any
    from .loading import load_plain as load_plain
    from .loading import load_tensors as load_tensors
    from .models.by_name import is_reference as is_reference
    from .models.copies import original_copy as original_copy
    from .models.copies import original_of as original_of
    from .models.layers import KINDS as KINDS
    from .models.layers import by_glob as by_glob
    from .models.layers import layers as layers
    from .models.layers import leaf_weight as leaf_weight
    from .models.layers import parameter as parameter
    from .models.layers import weight_name as weight_name
    from .models.modes import evaluating as evaluating
    from .models.state import restore as restore
    from .models.structure import Structure as Structure
    from .models.structure import replace as replace
    from .options import StageOptions as StageOptions
    from .options import require as require
    from .task import Task as Task
    from .task import logits_of as logits_of
    from .task import target_of as target_of
    from .trainer import Trainer as Trainer
    from .training.distributed import agree as agree
    from .training.distributed import check_equal as check_equal
    from .training.distributed import from_first as from_first
    from .training.masks import Masks as Masks

_HOME = {
    "commands.plots": "label",
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
