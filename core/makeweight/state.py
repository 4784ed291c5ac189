"""A model's tensors by name: as they are exported, and put back with names and shapes checked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from .errors import MakeweightError, did_you_mean


def exported_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with every parametrization realised (`fc1.weight`) and tied tensors once, by their first name."""
    state = model.state_dict()
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            dot = f"{prefix}." if prefix else ""
            for name in module.parametrizations:
                inside = f"{dot}parametrizations.{name}."
                state = {key: value for key, value in state.items() if not key.startswith(inside)}
                state[f"{dot}{name}"] = getattr(module, name).detach()
    return untied(state)


def untied(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the second and further names of the same memory."""
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            seen.setdefault((tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else
                            (id(tensor), (), ()), name)  # fmt: skip
    return {name: state[name].detach() for name in seen.values()}


def restore(model: nn.Module, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy tensors into a model. Raises MakeweightError, naming `where`, when names or shapes are another model's."""
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
    with torch.no_grad():
        for name in needed:
            own[name].copy_(tensors[name])
