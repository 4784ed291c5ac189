"""Sensitivity of one layer to pruning (Li et al., *Pruning filters for efficient ConvNets*, 2017, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .magnitude import kept


def measure(weight: Tensor, sparsities: Sequence[float], metric: Callable[[], float]) -> list[float]:
    """Metric values [n], one for each of the n sparsities, with `weight` alone pruned by magnitude.

    The weight is pruned in place and restored at the end, after an exception too. `metric` evaluates the network that
    the weight belongs to.
    """
    before = weight.detach().clone()
    values = []
    try:
        for sparsity in sparsities:
            with torch.no_grad():
                weight.copy_(torch.where(kept(before.abs(), sparsity), before, 0))
            values.append(metric())
    finally:
        with torch.no_grad():
            weight.copy_(before)
    return values
