"""Dynamic Network Surgery (Guo et al., NeurIPS 2016): pruned weights are still trained and can return.

The paper keeps the dense weights W and multiplies them by the masks T in the forward pass. The gradient with respect to
W ⊙ T updates all of W (equation 4). Here the model holds W ⊙ T; the pruned weights W ⊙ (1 - T) are stored separately.
The gradient of W ⊙ T is dense, so that an optimizer step moves pruned weights away from zero. This update is added to
the stored weights, and the pruned weights in the model are set to zero again. The result is the same update without a
parametrization and without a second copy in the forward pass. Weight decay acts on W ⊙ T, not on pruned weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LOWER, UPPER = 0.9, 1.1
"""thresholds a and b of equation 3, as multiples of one threshold t; the factors of the authors' code"""


def scores(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Magnitudes of dense weights, scaled so that one threshold t on them acts as both thresholds of equation 3.

    The score of a kept weight is |w| / 0.9: it is pruned if |w| < a = 0.9 t. The score of a pruned weight is |w| / 1.1:
    it returns if |w| > b = 1.1 t. Between a and b nothing changes. Any rule that ranks or thresholds these scores
    performs surgery, exact counts included: a pruned weight replaces a kept one if it is 1.22 times as large. The shape
    is that of `weight`; `mask` (bool, True keeps) is None before the first pruning.
    """
    magnitude = weight.abs()
    if mask is None:
        return magnitude.div_(LOWER)
    return magnitude.mul_(mask.to(magnitude).mul_(1 / LOWER - 1 / UPPER).add_(1 / UPPER))


def follow(stored: Sequence[Tensor], weights: Sequence[Tensor], dropping: Sequence[Tensor]) -> None:
    """Add the optimizer's update of the pruned weights to `stored`, in place.

    `dropping`: complements of the masks, in the weights' dtype. Pruned weights were zero before the step, so that
    `weights` ⊙ `dropping` is the update.
    """
    torch._foreach_addcmul_(list(stored), list(weights), list(dropping))


def whole(weight: Tensor, mask: Tensor, stored: Tensor) -> Tensor:
    """The dense weight: kept weights from `weight`, pruned ones from `stored`."""
    return torch.where(mask, weight, stored)
