"""Magnitude pruning as pure functions: which weights a layer keeps, and how many of them at which time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def scheduled(schedule: str, initial: float, final: float, done: float) -> float:
    """The sparsity to have when a fraction `done` of the schedule has passed, from `initial` at 0 to `final` at 1.

    cubic: s_f + (s_i - s_f)(1 - t)^3, "automated gradual pruning" (Zhu & Gupta 2017, eq. 1); linear: s_f + (s_i - s_f)
    (1 - t); one-shot: all of it at the start. It never falls: weights that were dropped stay dropped.
    """
    left = 0.0 if schedule == "one-shot" else 1 - min(max(done, 0.0), 1.0)
    return max(initial, final + (initial - final) * (left**3 if schedule == "cubic" else left))


def kept(scores: Tensor, sparsity: float) -> Tensor:
    """A bool mask of the shape of `scores` that drops exactly round(sparsity · n) of the n smallest scores."""
    flat = scores.flatten()
    dropped = round(sparsity * flat.numel())
    if dropped == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(dropped).values
    mask = flat > threshold
    # Of scores that equal the threshold the last ones are kept, so that the count is exact.
    spare = flat.numel() - dropped - int(mask.sum())
    if spare:
        mask[(flat == threshold).nonzero()[-spare:]] = True
    return mask.view(scores.shape)


def layer_masks(weights: Mapping[str, Tensor], sparsity: Mapping[str, float]) -> dict[str, Tensor]:
    """Each layer's mask by magnitude, to a sparsity of its own."""
    return {name: kept(weight.abs(), sparsity[name]) for name, weight in weights.items()}


def global_masks(weights: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks by magnitude over all layers together: sensitive layers, whose weights are larger, keep more."""
    mask = kept(torch.cat([weight.abs().flatten() for weight in weights.values()]), sparsity)
    parts = mask.split([weight.numel() for weight in weights.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def measured(weights: Mapping[str, Tensor]) -> float:
    """Zeros over the weights of all layers."""
    total = sum(weight.numel() for weight in weights.values())
    return sum(int((weight == 0).sum()) for weight in weights.values()) / total
