"""Copies of networks: on the CPU, of the original structure, and on the meta device."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .records import lineage_of


def original_copy(model: nn.Module) -> nn.Module:
    """A deep copy on the CPU. Raises UsageError if the model cannot be copied."""
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the model cannot be copied ({reason}): expected support for copy.deepcopy") from error


def original_of(model: nn.Module) -> nn.Module:
    """A copy of the original network, without recorded changes, on the CPU. If there are records, its weights are 0."""
    lineage = lineage_of(model)
    if lineage is None:
        return copy.deepcopy(model).cpu()

    def real(tensor: Tensor) -> Tensor:  # only buffers outside the state dict have values
        return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.clone()

    return copied(lineage.original, real)


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy with parameters and buffers on the meta device; buffers outside the state dict keep their values."""
    kept = {id(buffer) for buffer in transient(model)}
    return copied(model, lambda each: each.clone() if id(each) in kept else torch.empty_like(each, device="meta"))


def transient(model: nn.Module) -> list[Tensor]:
    """The buffers outside the state dict (`persistent=False`)."""
    found = []
    for module in model.modules():
        found += [module._buffers[name] for name in module._non_persistent_buffers_set if name in module._buffers]
    return [buffer for buffer in found if buffer is not None]


def copied(model: nn.Module, made: Any) -> nn.Module:
    """A deep copy in which each parameter and buffer is replaced by `made(tensor)`. Shared memory stays shared."""
    memo: dict[int, Any] = {}
    by_memory: dict[Any, Any] = {}
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            key = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
            if key not in by_memory:
                fresh = made(tensor)
                is_parameter = isinstance(tensor, nn.Parameter)
                by_memory[key] = nn.Parameter(fresh, tensor.requires_grad) if is_parameter else fresh
            memo[id(tensor)] = by_memory[key]
        return copy.deepcopy(model, memo)
