"""Idle weights: their input is constant, so the bias can take over their contribution and they can be pruned first.

Pruning creates many of them. A unit that has lost all of its inputs has a constant output, but the weights that read
this output keep their gradients, and so their magnitude.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from makeweight.plugin import evaluating

if TYPE_CHECKING:
    from makeweight import Trainer


def idle_last(scores: Mapping[str, Tensor], varying: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores with those of idle weights set to 0, so that they are pruned first; negative scores are unchanged.

    `varying`: bool masks of `varying_inputs`, broadcast to the scores' shapes.
    """
    return {
        name: torch.where((score > 0) & ~varying[name], 0, score) if name in varying else score
        for name, score in scores.items()
    }


def varying_inputs(trainer: Trainer, names: Iterable[str]) -> dict[str, Tensor]:
    """By layer, a bool mask of the weights whose input varies over the sample batch; broadcasts to [out, in, …].

    Layers that the model does not call are omitted.
    """
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            found = varies(module, inputs[0])
            seen[name] = seen[name] | found if name in seen else found

        return hook

    model = trainer.model
    handles = [attrgetter(name)(model).register_forward_pre_hook(watch(name)) for name in names if name]
    try:
        with evaluating(model), torch.no_grad(), trainer.accelerator.autocast():
            trainer.task.forward(model, trainer.sample_batch())
    finally:
        for handle in handles:
            handle.remove()
    return seen


def varies(layer: Any, inputs: Tensor) -> Tensor:
    """Bool mask [1 or out, in / groups, 1, …] of the weights of a Linear or Conv layer whose input varies.

    `inputs` is [..., in] for a Linear layer, [B, in, …] for a Conv layer. Padding is zero, so that a constant nonzero
    channel varies at a padded border.
    """
    weight = layer.weight
    if weight.ndim == 2:
        return (inputs != inputs.reshape(-1, inputs.shape[-1])[0]).flatten(0, -2).any(0)[None]
    rows = inputs.transpose(1, -1).flatten(0, -2)  # [places, in]
    padded = layer.padding not in ("valid", 0) and any(layer.padding)
    varying = (rows != (0 if padded else rows[0])).any(0).view(layer.groups, -1)
    return varying.repeat_interleave(len(weight) // layer.groups, 0).view(len(weight), -1, *[1] * (weight.ndim - 2))
