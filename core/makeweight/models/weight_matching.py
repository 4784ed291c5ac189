"""Fits tensors that were trained elsewhere into a model: checkpoints, prefixes of names, and another classifier."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MakeweightError
from .layers import KINDS
from .state import restore, untied

ENTRIES = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model")
"""entries of a checkpoint that may hold the state dict; the first one present is used, averaged weights first"""
PREFIXES = ("module.", "_orig_mod.")
"""prefixes that wrappers add to every name: DataParallel and AveragedModel, torch.compile"""
DEEPEST = 3
"""maximum number of entries within each other"""
SHOWN = 3
"""number of names of each kind in an error"""
COUNTED = "num_batches_tracked"
"""buffer of batch norm that files older than torch 0.4.1 lack; torch itself then keeps the model's"""


def find_state(checkpoint: Any, where: str) -> tuple[dict[str, Tensor], str]:
    """The state dict in a checkpoint, and a remark on where it was found ('' if it is the checkpoint itself).

    Raises MakeweightError, naming `where`, if there is no table of tensors by name.
    """
    path: list[str] = []
    remark = ""
    while isinstance(checkpoint, Mapping):
        tables = [name for name in ENTRIES if isinstance(checkpoint.get(name), Mapping)]
        if not tables or len(path) == DEEPEST:
            break
        others = f" (it also has {_names(tables[1:])})" if tables[1:] else ""
        path.append(tables[0])
        remark = f"read from its entry {'.'.join(path)!r}{others}"
        checkpoint = checkpoint[tables[0]]
    expected = "expected tensors by name, as torch.save(model.state_dict(), …) writes them"
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        holds = "an empty table" if isinstance(checkpoint, Mapping) else f"a {type(checkpoint).__name__}"
        raise MakeweightError(f"{where} holds {holds}: {expected}")
    for name, value in checkpoint.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise MakeweightError(f"{where} holds {name!r}, a {type(value).__name__}: {expected}")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise MakeweightError(f"{where}: {name!r} is not a dense tensor with values")
    return dict(checkpoint), remark


def without_prefixes(tensors: Mapping[str, Tensor], own: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors without the prefixes that all of their names and not all names `own` of the model have.

    Also returns a remark ('' if nothing was removed). AveragedModel's counter `n_averaged` is left out.
    """
    named = {name: tensor for name, tensor in tensors.items() if name != "n_averaged" or name in own}
    removed: list[str] = []
    while found := [each for each in PREFIXES if _all_begin(named, each) and not _all_begin(own, each)]:
        removed.append(found[0])
        named = {name.removeprefix(found[0]): tensor for name, tensor in named.items()}
    if not removed:
        return dict(tensors), ""
    return named, f"without the prefix {''.join(removed)!r} of its names"


def _all_begin(names: Collection[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def fit(model: nn.Module, tensors: Mapping[str, Tensor], where: str, num_classes: int | None = None) -> list[str]:
    """Copy tensors into a model, except a classifier with another number of classes, which the model keeps its own of.

    Returns the names of the tensors left out, as in `classifier_of`. Raises MakeweightError, naming `where`, for every
    other difference of names, shapes or kinds of dtype, with the first names of both sides.
    """
    own = model.state_dict()
    needed = untied(own)
    given = {name: tensors[alias] for name in needed if (alias := _found(name, own, tensors)) is not None}
    missing = [name for name in needed if name not in given and not name.endswith(COUNTED)]
    unknown = [name for name in tensors if name not in own]
    other = {name: given[name].shape for name in given if given[name].shape != own[name].shape}
    left = classifier_of(model, other, num_classes)
    if missing or unknown or other.keys() - set(left):
        raise MakeweightError(f"{where} belongs to another model: {_differences(missing, unknown, other, own)}")
    for name, tensor in given.items():
        if tensor.is_floating_point() != own[name].is_floating_point() or tensor.is_complex() != own[name].is_complex():
            raise MakeweightError(f"{where}: {name!r} has dtype {tensor.dtype}, the model's has {own[name].dtype}")
    restore(model, {name: own[name] if name in left or name not in given else given[name] for name in needed}, where)
    return left


def fit_some(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> str:
    """Copy the tensors that match the model in name, shape and kind of dtype; leave the others of the model unchanged.

    Returns a remark on the differences ('' if there are none). Raises MakeweightError if no tensor fits.
    """
    own = model.state_dict()
    needed = untied(own)
    given = {name: tensors[alias] for name in needed if (alias := _found(name, own, tensors)) is not None}
    other = {name: each.shape for name, each in given.items() if each.shape != own[name].shape}
    kinds = [name for name, each in given.items() if each.is_floating_point() != own[name].is_floating_point()
             or each.is_complex() != own[name].is_complex()]  # fmt: skip
    fitting = given.keys() - other.keys() - set(kinds)
    if not fitting:
        raise MakeweightError(f"{where}: none of its tensors fits the model")
    restore(model, {name: given[name] if name in fitting else own[name] for name in needed}, where)
    missing, unknown = [name for name in needed if name not in given], [name for name in tensors if name not in own]
    parts = [_differences(missing, unknown, other, own), *([f"{_names(kinds)} of another dtype"] if kinds else [])]
    return "; ".join(part for part in parts if part)


def classifier_of(model: nn.Module, other: Mapping[str, Sequence[int]], num_classes: int | None = None) -> list[str]:
    """The tensors of `other` (name: shape in a file) if they are the model's classifier for another number of classes.

    A classifier is all tensors of one or more Linear or Conv layers, including the last such layer of the model. Only
    the first dimension differs: the same length in all tensors of the file, and another in all tensors of the model
    (`num_classes` if given). A hidden layer of another width is not mistaken for a classifier, because the layer after
    it differs too. Returns all names of `other`, or none if one of them does not match.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}
    owners = {name.rpartition(".")[0] for name in other}
    if not other or not owners <= layers.keys() or list(layers)[-1] not in owners:
        return []
    own = {f"{layer}.{name}".removeprefix("."): tensor.shape
           for layer in owners for name, tensor in layers[layer].state_dict().items()}  # fmt: skip
    if own.keys() != other.keys() or any(len(other[name]) != len(shape) for name, shape in own.items()):
        return []
    lengths = {(other[name][0], shape[0]) for name, shape in own.items()}
    if len(lengths) != 1 or any(tuple(other[name][1:]) != tuple(shape[1:]) for name, shape in own.items()):
        return []
    return list(other) if num_classes in (None, next(iter(lengths))[1]) else []


def left_out(model: nn.Module, tensors: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """A remark on a classifier that was left out ('' if `names` is empty): its tensors and both numbers of classes."""
    if not names:
        return ""
    there, here = len(tensors[names[0]]), len(model.state_dict()[names[0]])
    return f"{_names(names)} newly initialised: {there} classes in the file, {here} in the model"


def _found(name: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str | None:
    """The name under which a file holds a tensor of the model: its own name, or another one that is tied to it."""
    if name in tensors:
        return name
    place = _place(own[name])
    return next((each for each in own if each in tensors and _place(own[each]) == place), None)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()._cdata if tensor.numel() else id(tensor)
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _differences(
    missing: Sequence[str], unknown: Sequence[str], other: Mapping[str, Sequence[int]], own: Mapping[str, Tensor]
) -> str:
    parts = []
    if missing:
        parts.append(f"the model also has {_names(missing)}")
    if unknown:
        parts.append(f"the file also has {_names(unknown)}")
    if other:
        shown = [f"{name!r} {list(shape)} where the model has {list(own[name].shape)}" for name, shape in other.items()]
        parts.append(f"the file has {_listed(shown)}")
    return "; ".join(parts)


def _names(names: Sequence[str]) -> str:
    return _listed(map(repr, names))


def _listed(parts: Iterable[str]) -> str:
    parts = list(parts)
    more = f" and {len(parts) - SHOWN:,} more" if len(parts) > SHOWN else ""
    return f"{', '.join(parts[:SHOWN])}{more}"
