from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from makeweight_cluster.kmeans import initial_centroids, kmeans, nearest


def drawn(size: int, seed: int) -> torch.Tensor:
    """Values [size] like the weights left by pruning: two modes and a gap around zero."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values + 0.5 * values.sign()


@pytest.mark.parametrize("how", ["linear", "density", "random"])
@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_it_converges_to_scikit_learns_centroids_from_the_same_start(how: str, count: int) -> None:
    values = drawn(3000, count)
    start = initial_centroids(values, count, how, torch.Generator().manual_seed(1))
    reference = KMeans(count, init=start[:, None].numpy(), n_init=1, max_iter=300, tol=0).fit(values[:, None].numpy())
    centroids = kmeans(values, start)
    expected = torch.from_numpy(reference.cluster_centers_).flatten().sort().values
    assert torch.allclose(centroids, expected, rtol=0, atol=1e-9)
    inertia = float(((values - centroids[nearest(values, centroids)]) ** 2).sum())
    assert inertia == pytest.approx(reference.inertia_, rel=1e-9)


@given(st.integers(1, 200), st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**31))
def test_each_value_is_with_its_nearest_centroid_and_each_centroid_is_a_mean(
    size: int, count: int, levels: int, seed: int
) -> None:
    values = drawn(size, seed)
    if levels:  # produces ties, and fewer distinct values than clusters
        values = (values * levels).round()
    centroids = kmeans(values, initial_centroids(values, count, "linear"))
    assert len(centroids) == count
    number = nearest(values, centroids)
    distances = (values[:, None] - centroids).abs()
    assert torch.equal(distances.gather(1, number[:, None]).flatten(), distances.min(1).values)
    for each in number.unique():
        assert float(centroids[each]) == pytest.approx(float(values[number == each].mean()), abs=1e-9)


def test_an_empty_cluster_restarts_at_the_farthest_value() -> None:
    values = torch.tensor([0.0, 0.2, 10.0, 10.1])
    assert kmeans(values, torch.tensor([0.0, 10.0, 50.0])).tolist() == pytest.approx([0.0, 0.2, 10.05], abs=1e-6)


def test_initial_centroids_are_those_of_the_paper() -> None:
    """Han et al. 2016, section 3.2: linear between the extremes, evenly over the distribution, random samples."""
    values = torch.tensor([4.0, 0.0, 1.0, 2.0, 3.0, 1.5, 1.2, 8.0])
    assert initial_centroids(values, 5, "linear").tolist() == [0, 2, 4, 6, 8]
    assert initial_centroids(values, 4, "density").tolist() == [1, 1.5, 3, 8]
    drawn_values = initial_centroids(values, 3, "random", torch.Generator().manual_seed(0)).tolist()
    assert len(set(drawn_values)) == 3
    assert set(drawn_values) <= set(values.tolist())


def test_neighbouring_floats_are_their_own_nearest_centroids() -> None:
    low = torch.tensor([1.0])
    pair = torch.cat([low, torch.nextafter(low, low + 1)])
    assert nearest(pair, pair).tolist() == [0, 1]
