"""N:M sparsity: at most N of every M consecutive weights along the input channels are nonzero.

Sparse tensor cores need groups along the input channels, for convolutions too. NVIDIA's ASP and TensorRT group the
channels at each position of the kernel. The matrix [out, kh · kw · in] of a convolution over channels-last images, like
the matrix [out, in] of a Linear layer, then has the pattern along its rows, which torch.sparse's semi-structured
tensors require. (Mishra et al., *Accelerating sparse deep neural networks*, 2021.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def input_dimension(module: nn.Module) -> int:
    """Dimension of the input channels in a layer's weight: 1 of [out, in, …], 0 of a transposed [in, out, …]."""
    return 0 if getattr(module, "transposed", False) else 1


def inputs(module: nn.Module) -> int:
    """Number of input channels per group of the layer; 1 for a depthwise convolution."""
    size = int(module.weight.shape[input_dimension(module)])  # type: ignore[index]
    return size // int(module.groups) if getattr(module, "transposed", False) else size  # type: ignore[arg-type]


def groups(weight: Tensor, m: int, dimension: int) -> Tensor:
    """[n / m, m]: the n weights in groups of m neighbours along `dimension`."""
    return weight.movedim(dimension, -1).reshape(-1, m)


def pattern_mask(scores: Tensor, m: int, dropped: int, dimension: int = 1) -> Tensor:
    """Bool mask of the shape of `scores` that drops the `dropped` smallest of every `m`; of equal scores, the first."""
    rows = groups(scores, m, dimension)
    mask = torch.ones_like(rows, dtype=torch.bool)
    mask.scatter_(1, rows.argsort(dim=1, stable=True)[:, :dropped], False)
    shape = scores.movedim(dimension, -1).shape
    return mask.view(shape).movedim(-1, dimension).contiguous()


def most_kept(weight: Tensor, m: int, dimension: int = 1) -> int:
    """Largest number of nonzero weights in a group of m."""
    return int((groups(weight, m, dimension) != 0).sum(1).max())
