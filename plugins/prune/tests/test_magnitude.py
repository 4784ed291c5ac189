from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from makeweight_prune.magnitude import global_masks, kept, layer_masks, measured
from makeweight_prune.schedules import scheduled


def test_the_cubic_schedule_is_the_papers_equation() -> None:
    """Zhu & Gupta 2017, eq. 1: s_t = s_f + (s_i - s_f)(1 - (t - t_0) / (n Δt))^3."""
    initial, final, begin, count, spacing = 0.2, 0.9, 100, 8, 25
    for step in range(begin, begin + count * spacing + 1, spacing):
        paper = final + (initial - final) * (1 - (step - begin) / (count * spacing)) ** 3
        assert scheduled("cubic", initial, final, (step - begin) / (count * spacing)) == pytest.approx(paper)


@pytest.mark.parametrize("schedule", ["cubic", "linear", "one-shot"])
def test_schedules_end_at_the_final_sparsity_and_never_fall(schedule: str) -> None:
    values = [scheduled(schedule, 0.1, 0.8, step / 50) for step in range(-5, 60)]
    assert values == sorted(values)
    assert values[-1] == 0.8
    assert values[0] == (0.8 if schedule == "one-shot" else pytest.approx(0.1))
    assert scheduled(schedule, 0.9, 0.8, 1.0) == 0.9


def test_linear_is_linear() -> None:
    assert scheduled("linear", 0.0, 0.8, 0.25) == pytest.approx(0.2)


@given(st.integers(1, 400), st.floats(0, 0.999), st.integers(0, 9), st.integers(0, 2**31))
def test_exactly_the_smallest_are_dropped_whatever_the_ties(size: int, sparsity: float, levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(size, generator=generator)
    if levels:
        scores = (scores * levels).floor()
    mask = kept(scores, sparsity)
    reference = scores.sort(stable=True).values[round(sparsity * size) :]
    assert int((~mask).sum()) == round(sparsity * size)
    assert torch.equal(scores[mask].sort().values, reference)


def test_global_masks_equal_one_sort_over_all_weights() -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(30, 20), "b": 0.1 * torch.randn(40, 30)}
    masks = global_masks({name: weight.abs() for name, weight in weights.items()}, 0.7)
    flat = torch.cat([weight.abs().flatten() for weight in weights.values()])
    threshold = flat.sort().values[round(0.7 * flat.numel())]
    for name, weight in weights.items():
        assert torch.equal(masks[name], weight.abs() >= threshold)
    assert masks["a"].float().mean() > 0.5 > masks["b"].float().mean()


def test_each_layer_mask_has_its_own_sparsity() -> None:
    weights = {"a": torch.randn(10, 10), "b": torch.randn(20, 10)}
    masks = layer_masks({name: weight.abs() for name, weight in weights.items()}, {"a": 0.5, "b": 0.9})
    zeroed = {name: weight * masks[name] for name, weight in weights.items()}
    assert [int((~mask).sum()) for mask in masks.values()] == [50, 180]
    assert measured(zeroed) == pytest.approx(230 / 300)
