"""Pruning by threshold: a multiple of the layer's standard deviation."""

from __future__ import annotations

from torch import Tensor


def threshold(weight: Tensor, quality: float) -> Tensor:
    """`quality` times the standard deviation of the layer's weights (Han et al. 2015, section 4), a scalar tensor.

    As in the paper, the standard deviation is over all weights; pruned weights count as zeros. One quality then gives
    similar thresholds in every round. Over the remaining weights alone, the threshold would grow from round to round.
    """
    return quality * weight.std(correction=0)


def above(scores: Tensor, weight: Tensor, quality: float) -> Tensor:
    """Bool mask of the shape of `scores` that drops scores below the threshold; a quality of 0 drops nothing more.

    Negative scores stay dropped.
    """
    return (scores >= threshold(weight, quality)) & (scores >= 0)
