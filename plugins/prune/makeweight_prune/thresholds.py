"""Pruning by a threshold that is a multiple of the layer's standard deviation."""

from __future__ import annotations

from torch import Tensor


def threshold(weight: Tensor, quality: float) -> Tensor:
    """`quality` times the standard deviation of the layer's weights (Han et al. 2015, section 4), a scalar.

    Of all of its weights, as the paper has it: those that were dropped count as the zeros that they are. So what one
    quality means changes little from round to round; over the survivors alone it would grow with each round.
    """
    return quality * weight.std(correction=0)


def above(scores: Tensor, weight: Tensor, quality: float) -> Tensor:
    """A bool mask that drops the scores (magnitudes) below the threshold; a quality of 0 drops nothing."""
    return (scores >= threshold(weight, quality)) & (scores >= 0)
