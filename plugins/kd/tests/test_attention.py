"""Attention transfer and hints against references written after the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from makeweight_kd.attention import Adapter, attention_distance, hint_distance


def attention(features: list[list[list[float]]]) -> list[float]:
    """Q / ‖Q‖ of one example [C, H, W], Q the mean over the channels of the squares, flattened."""
    channels, rows, columns = len(features), len(features[0]), len(features[0][0])
    flat = [
        sum(features[c][i][j] ** 2 for c in range(channels)) / channels for i in range(rows) for j in range(columns)
    ]
    length = math.sqrt(sum(value**2 for value in flat))
    return [value / length for value in flat]


def test_attention_distance_is_that_of_equation_2() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3, 4, 6), torch.randn(5, 7, 4, 6)
    reference = 0.0
    for one, other in zip(student.tolist(), teacher.tolist(), strict=True):
        reference += math.dist(attention(one), attention(other))
    assert float(attention_distance(student, teacher)) == pytest.approx(reference / 5 / (4 * 6), abs=1e-6)


def test_attention_does_not_depend_on_a_maps_scale_and_its_gradient_is_finite() -> None:
    student = torch.rand(2, 3, 4, 4, requires_grad=True)
    distance = attention_distance(student, 5 * student.detach())
    distance.backward()
    assert float(distance.detach()) == pytest.approx(0, abs=1e-7)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("sizes", [(8, 4), (4, 8)])
def test_the_larger_map_is_averaged_to_the_smaller_ones_size(sizes: tuple[int, int]) -> None:
    one, other = (torch.rand(2, 3, size, size) for size in sizes)
    maps = [each.square().mean(1, keepdim=True) for each in (one, other)]
    flat = [adaptive_avg_pool2d(each, 4).flatten(1) for each in maps]
    expected = (flat[0] / flat[0].norm(dim=1, keepdim=True) - flat[1] / flat[1].norm(dim=1, keepdim=True)).norm(dim=1)
    assert float(attention_distance(one, other)) == pytest.approx(float(expected.mean() / 16), abs=1e-6)


def test_a_teacher_gets_no_gradient_from_attention_or_hints() -> None:
    student, teacher = torch.rand(2, 3, 4, 4, requires_grad=True), torch.rand(2, 3, 4, 4, requires_grad=True)
    (attention_distance(student, teacher) + hint_distance(student, teacher)).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_hint_distance_is_half_the_squared_norm_over_the_number_of_elements() -> None:
    """Romero et al. 2015, eq. 3."""
    guided, hint = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    expected = sum(((one - other) ** 2).sum().item() / 2 for one, other in zip(guided, hint, strict=True)) / 3 / 100
    assert float(hint_distance(guided, hint)) == pytest.approx(expected, abs=1e-6)
    assert float(hint_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 2.0]]))) == 9 / 2 / 2


def test_an_adapter_outputs_the_teachers_width_for_maps_vectors_and_a_mixture() -> None:
    maps, vectors = torch.rand(2, 3, 8, 8), torch.rand(2, 5)
    assert Adapter(maps, torch.rand(2, 7, 4, 4))(maps).shape == (2, 7, 8, 8)
    assert Adapter(vectors, torch.rand(2, 9))(vectors).shape == (2, 9)
    adapted = Adapter(vectors, maps)(vectors)
    assert adapted.shape == (2, 3)
    assert hint_distance(adapted, maps).ndim == 0
