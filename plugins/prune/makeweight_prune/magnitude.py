"""Pruning by rank as pure functions on scores, the magnitudes of the weights: which ones a layer keeps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


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


def layer_masks(scores: Mapping[str, Tensor], sparsity: Mapping[str, float]) -> dict[str, Tensor]:
    """Each layer's mask, to a sparsity of its own."""
    return {name: kept(score, sparsity[name]) for name, score in scores.items()}


def global_masks(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks by rank over all layers together: sensitive layers, whose weights are larger, keep more."""
    mask = kept(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    parts = mask.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def zeros(tensors: Mapping[str, Tensor]) -> int:
    """The zeros of all tensors."""
    return sum(int((tensor == 0).sum()) for tensor in tensors.values())


def measured(weights: Mapping[str, Tensor]) -> float:
    """Zeros over the weights of all layers."""
    return zeros(weights) / sum(weight.numel() for weight in weights.values())
