"""Magnitude pruning by rank: pure functions from scores (weight magnitudes) to masks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def kept(scores: Tensor, sparsity: float) -> Tensor:
    """Bool mask of the shape of `scores` that drops exactly the round(sparsity · n) smallest of its n scores."""
    flat = scores.flatten()
    dropped = round(sparsity * flat.numel())
    if dropped == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(dropped).values
    mask = flat > threshold
    # The count is exact: of the scores equal to the threshold, the last ones by position are kept.
    spare = flat.numel() - dropped - int(mask.sum())
    if spare:
        mask[(flat == threshold).nonzero()[-spare:]] = True
    return mask.view(scores.shape)


def layer_masks(scores: Mapping[str, Tensor], sparsity: Mapping[str, float]) -> dict[str, Tensor]:
    """Masks by layer, each to the sparsity given for its layer."""
    return {name: kept(score, sparsity[name]) for name, score in scores.items()}


def global_masks(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks by layer from one ranking over all layers: layers with larger weights keep more of them."""
    mask = kept(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    parts = mask.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def zeros(tensors: Mapping[str, Tensor]) -> int:
    """Number of zeros in all tensors."""
    return sum(int((tensor == 0).sum()) for tensor in tensors.values())


def measured(weights: Mapping[str, Tensor]) -> float:
    """Sparsity over all tensors: zeros / elements."""
    return zeros(weights) / sum(weight.numel() for weight in weights.values())
