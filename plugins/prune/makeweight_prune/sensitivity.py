"""How much a network suffers where one layer alone is pruned (Li et al., *Pruning filters*, 2017, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .magnitude import kept


def measure(weight: Tensor, sparsities: Sequence[float], metric: Callable[[], float]) -> list[float]:
    """The metric of a network with this weight pruned in place, by magnitude, to each sparsity; it is put back.

    `metric` takes no argument: it evaluates the network that the weight belongs to.
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
