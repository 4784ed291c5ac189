"""A model's tensors by name: realised, as they are exported, or plain, behind parametrizations; and put back."""

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
"""the end of the name of a tensor behind a parametrization"""


def exported_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with every parametrization realised (`fc1.weight`) and tied tensors once, by their first name."""
    return untied(_without_parametrizations(model, lambda module, name: getattr(module, name).detach()))


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict that the model would have without its parametrizations: the tensors behind them."""

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
    """What a model's state dict has beyond `plain_state`: the parametrizations' own parameters and buffers."""
    state = model.state_dict()
    return {name: state[name] for name in state if PARAMETRIZED.search(name) and not ORIGINAL.search(name)}


def whole_state(
    model: nn.Module, plain: Mapping[str, torch.Tensor], attached: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A model's state dict from the two parts. Raises KeyError where one of them lacks a tensor."""
    names = untied(model.state_dict())
    return {name: attached[name] if name in attached else plain[ORIGINAL.sub(r"\1\2", name)] for name in names}


def untied(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the second and further names of the same memory."""
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            storage = tensor.untyped_storage()._cdata if tensor.numel() else id(tensor)
            seen.setdefault((storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()), name)
    return {name: state[name].detach() for name in seen.values()}


def restore(model: nn.Module, tensors: Mapping[str, torch.Tensor], where: str, exact: bool = False) -> None:
    """Copy tensors into a model. Raises MakeweightError, naming `where`, when names or shapes are another model's.

    With `exact` dtypes have to be the model's too; without it complex numbers are not taken for real ones.
    """
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise MakeweightError(f"{where}: holds something else than tensors")
    own = model.state_dict()
    needed = untied(own)
    if missing := [name for name in needed if name not in tensors]:
        near = did_you_mean(missing[0], tensors) if len(tensors) < 30 else "it is of another model"
        raise MakeweightError(f"{where}: the model's {missing[0]!r} is not in it: {near}")
    if unknown := [name for name in tensors if name not in own]:
        raise MakeweightError(f"{where}: holds {unknown[0]!r}, which the model has not: it is of another model")
    for name in needed:
        if tensors[name].shape != own[name].shape:
            raise MakeweightError(
                f"{where}: {name!r} has shape {list(tensors[name].shape)}, the model's has {list(own[name].shape)}"
            )
        given, expected = tensors[name].dtype, own[name].dtype
        if given != expected and (exact or (given.is_complex and not expected.is_complex)):
            raise MakeweightError(f"{where}: {name!r} is of {given}, the model's is of {expected}")
    with torch.no_grad():
        for name in needed:
            own[name].copy_(tensors[name])
