from __future__ import annotations

from typing import Any

import pytest
import torch

from makeweight_cluster.codebook import alive, distinct, follow, make_codebook, project, regroup


def sparse(rows: int, columns: int, density: float = 0.3) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(rows, columns) * (torch.rand(rows, columns) < density)


def losses(weight: torch.Tensor, step: int) -> torch.Tensor:
    """A loss with other data at every step."""
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(20, weight.shape[1], generator=generator), torch.randn(20, weight.shape[0], generator=generator)
    return ((x @ weight.T).tanh() - y).square().mean()


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.05},
        {"lr": 0.05, "momentum": 0.9},
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ],
)
def test_the_sum_is_sgd_on_an_explicit_codebook_with_summed_gradients(settings: dict[str, Any]) -> None:
    """Han et al. 2016, section 3.3: ∂L/∂C_k = Σ_ij ∂L/∂W_ij 1(I_ij = k), which autograd computes in the reference.

    Weight decay of every member decays the centroid once for each member.
    """
    weight = torch.nn.Parameter(sparse(8, 12))
    book = make_codebook(weight, 5)
    project(weight.data, book)
    codebook = torch.nn.Parameter(book.values.clone())
    numbers = torch.arange(5).repeat_interleave(book.sizes)
    ours = torch.optim.SGD([weight], **settings)
    decay = settings.get("weight_decay", 0)
    theirs = torch.optim.SGD([codebook], **(settings | {"weight_decay": 0}))
    for step in range(30):
        ours.zero_grad()
        losses(weight, step).backward()
        living = alive(weight.data, book)
        ours.step()
        follow(weight.data, book, living, "sum")
        theirs.zero_grad()
        explicit = torch.zeros(96).index_put((book.positions,), codebook[numbers]).view(8, 12)
        penalty = decay / 2 * (codebook.square() * book.sizes).sum()
        (losses(explicit, step) + penalty).backward()
        theirs.step()
    assert torch.allclose(book.values, codebook, rtol=0, atol=1e-5)
    assert not torch.allclose(book.values, make_codebook(sparse(8, 12), 5).values, atol=0.01)  # it has moved
    assert distinct(weight) == 5


def test_the_mean_gives_the_nearest_clustered_tensor_to_the_optimizers() -> None:
    weight = sparse(10, 10)
    book = make_codebook(weight, 4)
    project(weight, book)
    living = alive(weight, book)
    free = weight + torch.randn(10, 10)
    groups = [free.view(-1)[part] for part in book.positions.split(book.sizes.tolist())]
    moved = free.clone()
    follow(moved, book, living, "mean")
    assert book.values.tolist() == pytest.approx([float(group.mean()) for group in groups], abs=1e-6)
    assert torch.equal(moved == 0, weight == 0)


def test_clusters_are_the_surviving_weights_around_their_nearest_value() -> None:
    weight = sparse(20, 30)
    book = make_codebook(weight, 6)
    clustered = weight.clone()
    project(clustered, book)
    assert distinct(clustered) == 6
    assert torch.equal(clustered == 0, weight == 0)
    survivors, values = weight[weight != 0], book.values
    nearest = values[(survivors[:, None] - values).abs().argmin(1)]
    assert torch.equal(clustered[weight != 0], nearest)


@pytest.mark.parametrize("count", [3, 4, 9])
def test_a_tensor_with_few_values_keeps_them(count: int) -> None:
    weight = torch.tensor([[0.0, 1.0, -3.0], [1.0, 1.000001, 0.0]])
    clustered = weight.clone()
    project(clustered, make_codebook(weight, count))
    assert torch.equal(clustered, weight)


def test_a_tensor_of_zeros_has_an_empty_codebook() -> None:
    weight = torch.zeros(3, 3)
    book = make_codebook(weight, 4)
    weight += 1  # an optimizer step that ignores the zeros
    follow(weight, book, alive(torch.zeros(3, 3), book), "mean")
    assert not weight.any()


@pytest.mark.parametrize("before", [True, False])
def test_weights_pruned_by_others_stay_zero_and_move_no_centroid(before: bool) -> None:
    weight = torch.tensor([1.0, 1.0, 1.0, -2.0, 0.0])
    book = make_codebook(weight, 2)
    if before:
        weight[0] = 0
    living = alive(weight, book)
    weight += torch.tensor([9.0, 0.5, 0.7, 0.1, 9.0])
    if not before:
        weight[0] = 0
    follow(weight, book, living, "mean")
    assert weight.tolist() == pytest.approx([0, 1.6, 1.6, -1.9, 0])


def test_members_change_clusters_by_their_latent_values() -> None:
    weight = torch.tensor([1.0, 1.0, 2.0, 2.0, 0.0])
    book = make_codebook(weight, 2, keep_latent=True)
    for _ in range(4):
        living = alive(weight, book)
        weight += torch.tensor([0.2, -0.2, 0.0, 0.0, 0.0])
        follow(weight, book, living, "mean")
        assert weight.tolist() == pytest.approx([1, 1, 2, 2, 0])
    book = regroup(book, alive(weight, book))
    project(weight, book)
    assert weight.tolist() == pytest.approx([2, 1, 2, 2, 0])
    weight[3] = 0
    assert len(regroup(book, alive(weight, book)).positions) == 3
