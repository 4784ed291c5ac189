"""Augmentation of a batch of images at once, each image by random numbers of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch

SHIFT = 0.05
"""fraction of an image's size by which `--augment shift` moves it at most: a pixel of MNIST's 28"""
Augment = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(images [B, C, H, W], noise [B, 3] uniform in [0, 1)) → images of the same shape."""


def shift(
    images: torch.Tensor, noise: torch.Tensor, fraction: float = SHIFT, fill: torch.Tensor | None = None
) -> torch.Tensor:
    """Move each image by up to `fraction` of its size, in whole pixels; what comes in from outside is `fill` [C]."""
    height, width = images.shape[-2:]
    rows, inside_rows = _moved(noise[:, 0], height, fraction)  # [B, H]
    columns, inside_columns = _moved(noise[:, 1], width, fraction)  # [B, W]
    batch = torch.arange(len(images), device=images.device)
    moved = images.permute(0, 2, 3, 1)[batch[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    inside = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]  # [B, 1, H, W]
    outside = torch.zeros(images.shape[1], device=images.device) if fill is None else fill
    return torch.where(inside, moved, outside.to(images)[:, None, None])


def crop_flip(images: torch.Tensor, noise: torch.Tensor, fill: torch.Tensor | None = None) -> torch.Tensor:
    """A random crop of the image padded by an eighth, mirrored half of the time: the usual one of CIFAR."""
    cropped = shift(images, noise, 1 / 8, fill)
    return torch.where((noise[:, 2] < 0.5)[:, None, None, None], cropped.flip(-1), cropped)


def _moved(noise: torch.Tensor, size: int, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """For each image the source index of each line, clamped, and whether it lies inside: [B, size] each."""
    most = max(1, round(size * fraction))
    offset = (noise * (2 * most + 1)).long() - most
    index = torch.arange(size, device=noise.device) + offset[:, None]
    return index.clamp(0, size - 1), (index >= 0) & (index < size)
