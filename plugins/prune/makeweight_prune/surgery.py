"""Dynamic Network Surgery (Guo et al., NeurIPS 2016): what was dropped goes on being trained, and may come back.

The paper keeps the dense weights W and multiplies them by the masks T in the forward pass; the gradient with respect
to W ⊙ T moves all of W (equation 4). Here the model holds W ⊙ T itself, and the pruned weights W ⊙ (1 - T) are stored.
A step of the optimizer on W ⊙ T, whose gradient is dense, moves pruned weights away from zero; that update is added to
the stored weights, and the weight is set to zero again. It is the same update with neither a parametrization nor a
second forward path, and the loss that is regularised is that of W ⊙ T: weight decay leaves pruned weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LOWER, UPPER = 0.9, 1.1
"""the two thresholds a and b of equation 3, as multiples of one: the factors of the authors' own code"""


def scores(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Magnitudes of dense weights, scaled so that one threshold t on them is the two thresholds of equation 3.

    A weight that is kept falls below t where |w| < a = 0.9 t, a dropped one exceeds it where |w| > b = 1.1 t, and
    between the two nothing changes. So any rule that ranks or cuts scores becomes surgery, exact counts included: a
    dropped weight takes the place of a kept one where it is 1.22 times as large.
    """
    magnitude = weight.abs()
    if mask is None:
        return magnitude.div_(LOWER)
    return magnitude.mul_(mask.to(magnitude).mul_(1 / LOWER - 1 / UPPER).add_(1 / UPPER))


def follow(stored: Sequence[Tensor], weights: Sequence[Tensor], dropping: Sequence[Tensor]) -> None:
    """Add the optimizer's update to the stored pruned weights; `dropping` are the masks' complements."""
    torch._foreach_addcmul_(list(stored), list(weights), list(dropping))


def whole(weight: Tensor, mask: Tensor, stored: Tensor) -> Tensor:
    """The dense weight: what the mask keeps, and the stored pruned weights."""
    return torch.where(mask, weight, stored)
