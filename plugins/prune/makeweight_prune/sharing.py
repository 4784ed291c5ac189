"""A sparsity shared out over layers, so that sensitive ones get less."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from makeweight import UsageError

if TYPE_CHECKING:
    from .curves import Curve


def largest(curve: Curve, drop: float) -> float:
    """The largest sparsity at which a layer alone loses at most `drop`; below a drop of 0 it is 0.

    Linear between the measured points, from no loss at 0. Where a measured drop is less than one at a lower sparsity,
    the higher one holds: chance must not buy a layer a high sparsity.
    """
    if drop < 0:
        return 0.0
    sparsity = [0.0, *curve.sparsity]
    worst = list(accumulate([0.0, *curve.drop], max))
    last = bisect_right(worst, drop) - 1
    if last == len(worst) - 1:
        return sparsity[-1]
    share = (drop - worst[last]) / (worst[last + 1] - worst[last])
    return sparsity[last] + share * (sparsity[last + 1] - sparsity[last])


def share_out(curves: Mapping[str, Curve], target: float, path: str = "the file") -> dict[str, float]:
    """Sparsities by layer, whose total over all weights is `target`, with one drop d common to all layers.

    Each layer gets the largest sparsity at which, pruned alone, it loses at most d (the curves are those of Li et al.
    2017); d is found by bisection. Where the total jumps at d, as at 0 where layers lose nothing, all layers go the
    same share of the jump. No layer gets more than was measured of it. The total is exact: round(target · n) weights.
    Raises UsageError for a target above what was measured.
    """
    total = sum(curve.weights for curve in curves.values())
    most = sum(curve.weights * curve.sparsity[-1] for curve in curves.values()) / total
    if target > most:
        raise UsageError(f"sparsity {target:g}: expected at most {most:.4g}, as far as {path} has measured")

    def at(drop: float) -> dict[str, float]:
        return {name: largest(curve, drop) for name, curve in curves.items()}

    def reached(sparsity: Mapping[str, float]) -> float:
        return sum(curve.weights * sparsity[name] for name, curve in curves.items()) / total

    if reached(at(0.0)) >= target:  # for nothing
        low, high = -1.0, 0.0
    else:
        low, high = 0.0, max(max(curve.drop) for curve in curves.values())
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if reached(at(middle)) < target else (low, middle)
    below, above = at(low), at(high)
    gap = reached(above) - reached(below)
    share = min(max((target - reached(below)) / gap, 0.0), 1.0) if gap > 0 else 1.0
    exact = {name: curve.weights * (below[name] + share * (above[name] - below[name]))
             for name, curve in curves.items()}  # fmt: skip
    counts = _whole_numbers(exact, {name: curve.weights for name, curve in curves.items()}, round(target * total))
    return {name: counts[name] / curve.weights for name, curve in curves.items()}


def _whole_numbers(exact: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers near `exact` with that total, by largest remainders; each layer keeps a weight."""
    counts = {name: min(int(each), sizes[name] - 1) for name, each in exact.items()}
    order = sorted(exact, key=lambda name: counts[name] - exact[name])
    while (missing := total - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        movable = [name for name in order if 0 <= counts[name] + step < sizes[name]][: abs(missing)]
        if not movable:
            break
        for name in movable:
            counts[name] += step
    return counts
