"""Distribution of a total sparsity over layers: sensitive layers get less."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from makeweight import UsageError

if TYPE_CHECKING:
    from .curves import Curve


def largest(curve: Curve, drop: float) -> float:
    """Largest sparsity at which pruning this layer alone costs at most `drop` of the metric; 0 for a negative drop.

    The curve is linear between the measured points, from a drop of 0 at sparsity 0. It is made monotone by its running
    maximum, so that a small drop by chance at a high sparsity does not count.
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
    """Sparsities by layer that prune round(target · n) of all n weights, with one allowed drop d for all layers.

    Each layer gets the largest sparsity at which pruning it alone costs at most d (sensitivity curves as in Li et al.
    2017), and never more than its largest measured sparsity. If the total jumps at d, as at d = 0 if layers lose
    nothing, all layers go the same fraction of their jump. Raises UsageError if `target` exceeds the largest measured
    total; `path` names the file in the message.
    """
    sizes = {name: curve.weights for name, curve in curves.items()}
    weights = sum(sizes.values())
    most = sum(curve.weights * curve.sparsity[-1] for curve in curves.values()) / weights
    if target > most:
        raise UsageError(f"sparsity {target:g}: expected at most {most:.4g}, the largest total in {path}")
    below, above = (_at(curves, drop) for drop in common_drop(curves, target))
    gap = _total(curves, above) - _total(curves, below)
    share = min(max((target - _total(curves, below)) / gap, 0.0), 1.0) if gap > 0 else 1.0
    exact = {name: size * (below[name] + share * (above[name] - below[name])) for name, size in sizes.items()}
    counts = _whole_numbers(exact, sizes, round(target * weights))
    return {name: counts[name] / size for name, size in sizes.items()}


def common_drop(curves: Mapping[str, Curve], target: float) -> tuple[float, float]:
    """Two neighbouring drops (floats), found by bisection, between which the total sparsity reaches `target`."""
    if _total(curves, _at(curves, 0.0)) >= target:  # the sparsities that cost nothing suffice
        return -1.0, 0.0
    low, high = 0.0, max(max(curve.drop) for curve in curves.values())
    while low < (middle := (low + high) / 2) < high:
        if _total(curves, _at(curves, middle)) < target:
            low = middle
        else:
            high = middle
    return low, high


def _at(curves: Mapping[str, Curve], drop: float) -> dict[str, float]:
    """Sparsities by layer at one allowed drop."""
    return {name: largest(curve, drop) for name, curve in curves.items()}


def _total(curves: Mapping[str, Curve], sparsity: Mapping[str, float]) -> float:
    """Sparsity over all weights, given the sparsities by layer."""
    sizes = {name: curve.weights for name, curve in curves.items()}
    return sum(size * sparsity[name] for name, size in sizes.items()) / sum(sizes.values())


def _whole_numbers(exact: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Round `exact` to whole numbers that sum to `total` (largest remainders); every layer keeps at least 1 weight."""
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
