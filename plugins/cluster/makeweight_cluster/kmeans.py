"""One-dimensional k-means. On sorted values clusters are intervals, and their sums are differences of prefix sums."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_ROUNDS = 300
ROUNDING = 1e-12
"""tolerance, relative to the largest magnitude, within which a value counts as equal to its centroid"""


def initial_centroids(values: Tensor, count: int, how: str, generator: torch.Generator | None = None) -> Tensor:
    """Initial centroids [count], ascending, for `values` [n]: the three methods of Han et al. 2016, section 3.2.

    linear: evenly spaced from the smallest to the largest value. density: values at evenly spaced ranks. random:
    values at ranks drawn without replacement.
    """
    ordered = values.sort().values
    if how == "linear":
        return torch.linspace(float(ordered[0]), float(ordered[-1]), count, dtype=values.dtype, device=values.device)
    if how == "density":
        ranks = ((torch.arange(count) + 0.5) / count * len(ordered)).long()
    else:
        ranks = torch.randperm(len(ordered), generator=generator)[:count].sort().values
    return ordered[ranks.to(ordered.device)]


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Index [n] of the nearest centroid of each value [n], the smaller at a tie; `centroids` [k] are ascending."""
    centroids = centroids.double()  # neighbouring floats have no midpoint in their own precision
    return torch.bucketize(values.double(), (centroids[1:] + centroids[:-1]) / 2)


def kmeans(values: Tensor, centroids: Tensor) -> Tensor:
    """Centroids [k], ascending, float64, of `values` [n] by Lloyd's algorithm from the initial `centroids` [k].

    Runs until no assignment changes, for at most MOST_ROUNDS rounds. An empty cluster restarts at the value farthest
    from its centroid.
    """
    ordered = values.double().sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    centroids = centroids.double().sort().values
    bounds = torch.empty(0)
    for _ in range(MOST_ROUNDS):
        middles = (centroids[1:] + centroids[:-1]) / 2
        inner = torch.searchsorted(ordered, middles, right=True)
        ends = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])  # [k + 1]
        if torch.equal(ends, bounds):
            break
        bounds = ends
        sizes = ends.diff()
        empty = sizes == 0
        centroids = torch.where(empty, centroids, sums[ends].diff() / sizes.clamp(min=1))
        if empty.any():
            distances = (ordered - centroids.repeat_interleave(sizes)).abs()
            farthest = distances.topk(min(int(empty.sum()), len(ordered)))
            better = farthest.indices[farthest.values > ROUNDING * ordered.abs().amax()]
            centroids[empty.nonzero().flatten()[: len(better)]] = ordered[better]
            centroids = centroids.sort().values
    return centroids
