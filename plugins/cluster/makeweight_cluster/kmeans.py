"""k-means in one dimension, on sorted values: clusters are intervals, and their sums are differences of prefix sums."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_ROUNDS = 300
ROUNDING = 1e-12
"""distance from a centroid, relative to the largest value, up to which a value lies on it but for rounding"""


def initial_centroids(values: Tensor, count: int, how: str, generator: torch.Generator | None = None) -> Tensor:
    """`count` centroids, ascending, for `values` [n]: the three ways of Han et al. 2016, section 3.2.

    linear: evenly from the smallest to the largest value; density: evenly over the ranks of the values; random: the
    values at `count` ranks drawn without repetition.
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
    """The number of the nearest centroid [n], of two as near the smaller; `centroids` [k] are ascending."""
    centroids = centroids.double()  # between neighbouring floats there is no middle in their own precision
    return torch.bucketize(values.double(), (centroids[1:] + centroids[:-1]) / 2)


def kmeans(values: Tensor, centroids: Tensor) -> Tensor:
    """Centroids [k], ascending, after Lloyd's algorithm from `centroids`, until no value changes its cluster.

    A cluster left empty starts anew at the value that is farthest from its centroid.
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
