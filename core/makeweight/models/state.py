"""State dicts of models with parametrizations: computed values, original values, and loading."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..errors import MakeweightError, did_you_mean

PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.")
ORIGINAL = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original$")
"""name of the original tensor of a parametrization"""


def exported_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with the computed value of each parametrized tensor (`fc1.weight`), without tied duplicates."""
    return untied(_without_parametrizations(model, lambda module, name: getattr(module, name).detach()))


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the model without its parametrizations: the original tensors, without tied duplicates."""

    def behind(module: nn.Module, name: str) -> torch.Tensor:
        found: torch.Tensor | None = getattr(module.parametrizations[name], "original", None)  # type: ignore[index]
        return (getattr(module, name) if found is None else found).detach()

    return untied(_without_parametrizations(model, behind))


def _without_parametrizations(
    model: nn.Module, value: Callable[[nn.Module, str], torch.Tensor]
) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            dot = f"{prefix}." if prefix else ""
            for name in module.parametrizations:
                inside = f"{dot}parametrizations.{name}."
                state = {key: value for key, value in state.items() if not key.startswith(inside)}
                state[f"{dot}{name}"] = value(module, name)
    return state


def attached_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The part of the state dict that is not in `plain_state`: parameters and buffers of the parametrizations."""
    state = model.state_dict()
    return {name: state[name] for name in state if PARAMETRIZED.search(name) and not ORIGINAL.search(name)}


def whole_state(
    model: nn.Module, plain: Mapping[str, torch.Tensor], attached: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The state dict of a model from its plain and its attached part. Raises KeyError if a tensor is missing."""
    names = untied(model.state_dict())
    return {name: attached[name] if name in attached else plain[ORIGINAL.sub(r"\1\2", name)] for name in names}


def untied(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict without tied duplicates: of several names for the same memory, only the first."""
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            storage = tensor.untyped_storage()._cdata if tensor.numel() else id(tensor)
            seen.setdefault((storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()), name)
    return {name: state[name].detach() for name in seen.values()}


def restore(model: nn.Module, tensors: Mapping[str, torch.Tensor], where: str, exact: bool = False) -> None:
    """Copy tensors into a model. `where` names their source in messages.

    Raises MakeweightError if names or shapes differ from the model's, or if complex tensors are given for real ones.
    With `exact`, all dtypes must be equal, too.
    """
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise MakeweightError(f"{where}: holds values that are not tensors")
    own = model.state_dict()
    needed = untied(own)
    if missing := [name for name in needed if name not in tensors]:
        near = did_you_mean(missing[0], tensors) if len(tensors) < 30 else "it belongs to another model"
        raise MakeweightError(f"{where}: tensor {missing[0]!r} of the model is missing: {near}")
    if unknown := [name for name in tensors if name not in own]:
        raise MakeweightError(f"{where}: holds {unknown[0]!r}, unknown to the model: it belongs to another model")
    for name in needed:
        if tensors[name].shape != own[name].shape:
            raise MakeweightError(
                f"{where}: {name!r} has shape {list(tensors[name].shape)}: expected {list(own[name].shape)}"
            )
        given, expected = tensors[name].dtype, own[name].dtype
        if given != expected and (exact or (given.is_complex and not expected.is_complex)):
            raise MakeweightError(f"{where}: {name!r} has dtype {given}: expected {expected}")
    with torch.no_grad():
        for name in needed:
            own[name].copy_(tensors[name])
