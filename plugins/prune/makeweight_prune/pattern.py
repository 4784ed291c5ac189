"""N:M sparsity: of every M consecutive weights along the input channels at most N are not zero.

Input channels, for convolutions too, are what sparse tensor cores take: NVIDIA's ASP and TensorRT group a kernel's
weights by channel at each of its positions, and the matrix [out, kh · kw · in] of a convolution over channels-last
images, like that of a Linear [out, in], then has the pattern along its rows, as torch.sparse's semi-structured tensors
need it. (Mishra et al., *Accelerating sparse deep neural networks*, 2021.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def input_dimension(module: nn.Module) -> int:
    """Which dimension of a layer's weight counts input channels: [out, in, …], of a transposed one [in, out, …]."""
    return 0 if getattr(module, "transposed", False) else 1


def inputs(module: nn.Module) -> int:
    """The input channels that a group of a layer sees: of a depthwise convolution 1."""
    size = int(module.weight.shape[input_dimension(module)])  # type: ignore[index]
    return size // int(module.groups) if getattr(module, "transposed", False) else size  # type: ignore[arg-type]


def groups(weight: Tensor, m: int, dimension: int) -> Tensor:
    """[n / m, m]: the weights that stand side by side along the input dimension."""
    return weight.movedim(dimension, -1).reshape(-1, m)


def pattern_mask(scores: Tensor, m: int, dropped: int, dimension: int = 1) -> Tensor:
    """A bool mask that drops the `dropped` smallest of every `m` scores; of equal ones the first."""
    rows = groups(scores, m, dimension)
    mask = torch.ones_like(rows, dtype=torch.bool)
    mask.scatter_(1, rows.argsort(dim=1, stable=True)[:, :dropped], False)
    shape = scores.movedim(dimension, -1).shape
    return mask.view(shape).movedim(-1, dimension).contiguous()


def most_kept(weight: Tensor, m: int, dimension: int = 1) -> int:
    """The most weights other than zero of any group of m."""
    return int((groups(weight, m, dimension) != 0).sum(1).max())
