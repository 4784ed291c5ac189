"""Augmentation of batches of images, with different random numbers for each image."""

from __future__ import annotations

from collections.abc import Callable

import torch

SHIFT = 0.05
"""maximum shift of `--augment shift` as a fraction of the image size; 1 pixel for MNIST (28 pixels)"""
Augment = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(images [B, C, H, W], noise [B, 3] uniform in [0, 1)) → images of the same shape"""


def shift(
    images: torch.Tensor, noise: torch.Tensor, fraction: float = SHIFT, fill: torch.Tensor | None = None
) -> torch.Tensor:
    """Shift each image by whole pixels, up to `fraction` of its size. New pixels get the colour `fill` [C] or 0."""
    height, width = images.shape[-2:]
    rows, inside_rows = _moved(noise[:, 0], height, fraction)  # [B, H]
    columns, inside_columns = _moved(noise[:, 1], width, fraction)  # [B, W]
    batch = torch.arange(len(images), device=images.device)
    moved = images.permute(0, 2, 3, 1)[batch[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    inside = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]  # [B, 1, H, W]
    outside = torch.zeros(images.shape[1], device=images.device) if fill is None else fill
    return torch.where(inside, moved, outside.to(images)[:, None, None])


def crop_flip(images: torch.Tensor, noise: torch.Tensor, fill: torch.Tensor | None = None) -> torch.Tensor:
    """Random crop of the image padded by 1/8 of its size, and horizontal flip with probability 1/2, as for CIFAR."""
    cropped = shift(images, noise, 1 / 8, fill)
    return torch.where((noise[:, 2] < 0.5)[:, None, None, None], cropped.flip(-1), cropped)


def _moved(noise: torch.Tensor, size: int, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Source index of each row or column, clamped to the image, and a mask of those inside it; both [B, size]."""
    most = max(1, round(size * fraction))
    offset = (noise * (2 * most + 1)).long() - most
    index = torch.arange(size, device=noise.device) + offset[:, None]
    return index.clamp(0, size - 1), (index >= 0) & (index < size)
