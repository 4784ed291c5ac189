"""Module outputs by shape: feature maps, tokens and vectors."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


def as_map(features: Tensor) -> Tensor:
    """A feature map in the layout [B, C, H, W], from that layout or from [B, H, W, C] (Swin transformer).

    The shape decides: the layout is [B, H, W, C] where the second and third sizes are equal and the fourth differs.
    """
    channels_last = features.shape[1] == features.shape[2] != features.shape[3]
    return features.permute(0, 3, 1, 2) if channels_last else features


def height(features: object) -> int | None:
    """The height H of a feature map; None for anything that is not a tensor of four dimensions."""
    return as_map(features).shape[2] if isinstance(features, Tensor) and features.ndim == 4 else None


def pooled(features: Tensor) -> Tensor:
    """Features as vectors [B, D]: maps are averaged over positions, tokens [B, T, D] over T; vectors are unchanged."""
    if features.ndim == 4:
        return adaptive_avg_pool2d(as_map(features), 1).flatten(1)
    return features.mean(1) if features.ndim == 3 else features
