"""What a module puts out, by its shape: feature maps, tokens and vectors."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


def as_map(features: Tensor) -> Tensor:
    """A feature map as [B, C, H, W], whether it was that or, as in a Swin transformer, [B, H, W, C].

    One whose second and third dimensions alone are equal is taken for the latter.
    """
    channels_last = features.shape[1] == features.shape[2] != features.shape[3]
    return features.permute(0, 3, 1, 2) if channels_last else features


def height(features: object) -> int | None:
    """The height of a feature map, None of what is no feature map."""
    return as_map(features).shape[2] if isinstance(features, Tensor) and features.ndim == 4 else None


def pooled(features: Tensor) -> Tensor:
    """A feature map averaged over its places, tokens [B, T, D] over the tokens; a vector [B, D] as it is."""
    if features.ndim == 4:
        return adaptive_avg_pool2d(as_map(features), 1).flatten(1)
    return features.mean(1) if features.ndim == 3 else features
