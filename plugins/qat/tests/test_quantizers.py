from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makeweight_qat.quantizers import (
    LearnedStep,
    affine_parameters,
    at_most_halved,
    fake_quantize,
    fake_quantize_channels,
    fake_quantize_whole,
    gradient_factor,
    initial_step,
    symmetric_scale,
    weight_limit,
)
from makeweight_qat.weights import QuantizedWeight, from_integers, to_integers

BITS = st.integers(2, 8)
SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**31)


def reference(x: Any, scale: Any, zero_point: Any, low: int, high: int) -> tuple[Any, Any]:
    """Dequantized values and integers by the formula: q = clamp(round half to even(x / s) + z), s (q - z)."""
    inverse = np.float32(1) / scale
    integers = np.clip(np.rint(x * inverse) + zero_point, low, high)
    return ((integers - zero_point) * scale).astype(np.float32), integers


def tensor(shape: list[int], seed: int, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_halves_are_rounded_to_even() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert fake_quantize(x, 1.0, 1.0, -128, 127).tolist() == [-2, -2, 0, 0, 2, 2]
    assert fake_quantize_whole(x, torch.tensor(1.0)).tolist() == [-2, -2, 0, 0, 2, 2]


@settings(deadline=None, max_examples=150)
@given(BITS, SHAPES, SEEDS, st.floats(0.01, 30), st.floats(-3, 3))
def test_activations_equal_the_formula_and_torchs_operator(
    bits: int, shape: list[int], seed: int, spread: float, shift: float
) -> None:
    x = tensor(shape, seed, spread) + shift
    limit = 2**bits - 1
    seen = x[..., : max(x.shape[-1] // 2, 1)]  # so that some of x is clipped
    scale, zero_point = affine_parameters(torch.stack([-seen.min(), seen.max()]), torch.tensor(limit))
    assert 0 <= zero_point <= limit
    assert zero_point == zero_point.round()
    x.requires_grad_()
    low = -float(zero_point)
    given_out = fake_quantize(x, 1 / scale, scale, low, limit + low)
    expected, _ = reference(x.detach().numpy(), scale.numpy(), zero_point.numpy(), 0, limit)
    assert np.array_equal(given_out.detach().numpy(), expected)
    other = x.detach().clone().requires_grad_()
    theirs = torch.fake_quantize_per_tensor_affine(other, scale, zero_point.int(), 0, limit)
    assert torch.equal(given_out, theirs)
    weights = torch.randn_like(x)
    (given_out * weights).sum().backward()
    (theirs * weights).sum().backward()
    position = (x.detach() / scale + zero_point).double()
    near = ((position + 0.5).abs() < 1e-3) | ((position - limit - 0.5).abs() < 1e-3)  # a tie may fall either way
    inside = (position.round() >= 0) & (position.round() <= limit)
    assert x.grad is not None
    assert other.grad is not None
    assert torch.equal(x.grad[~near], (weights * inside)[~near])
    assert torch.equal(x.grad[~near], other.grad[~near])


@settings(deadline=None)
@given(BITS, st.floats(-50, 50, width=32), st.floats(-50, 50, width=32))
def test_zero_is_representable_and_the_range_is_covered(bits: int, one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    limit = 2**bits - 1
    scale, zero_point = affine_parameters(torch.tensor([-low, high]), torch.tensor(limit))
    s, z = float(scale), float(zero_point)
    assert 0 <= z <= limit
    assert s > 0
    assert s * (0 - z) <= min(low, 0) + 0.51 * s
    assert s * (limit - z) >= max(high, 0) - 0.51 * s
    assert float(fake_quantize(torch.zeros(1), 1 / s, s, -z, limit - z)) == 0


@settings(deadline=None, max_examples=150)
@given(BITS, st.lists(st.integers(1, 5), min_size=2, max_size=4), SEEDS, st.integers(0, 1), st.booleans())
def test_weights_equal_the_formula_channel_by_channel(
    bits: int, shape: list[int], seed: int, axis: int, clipped: bool
) -> None:
    weight = tensor(shape, seed)
    weight[weight.abs() < 0.3] = 0  # as pruning leaves it
    weight.select(axis, 0).zero_()  # a channel that is gone
    module = QuantizedWeight(weight, axis, bits, "percentile" if clipped else "minmax", 60.0)
    module.on = True
    parameter = weight.clone().requires_grad_()
    quantized = module(parameter)
    scale, limit = module.scale(weight), weight_limit(bits)
    assert scale.shape == (shape[axis],)
    for channel in range(shape[axis]):
        values, s = weight.select(axis, channel).numpy(), scale[channel].numpy()
        expected, integers = reference(values, s, 0, -limit, limit)
        assert np.array_equal(quantized.select(axis, channel).detach().numpy(), expected)
        assert np.abs(integers).max() <= limit
    assert not quantized[weight == 0].any()
    zero_points = torch.zeros(shape[axis], dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(weight, scale, zero_points, axis, -limit, limit)
    assert torch.equal(quantized, theirs)
    integers = to_integers(quantized.detach(), scale, axis, bits)
    assert integers.dtype == torch.int8
    assert torch.equal(from_integers(integers, scale, axis), quantized)
    quantized.sum().backward()
    shaped = scale.view([-1 if dim == axis else 1 for dim in range(len(shape))])
    position = (weight / shaped).abs().double()
    near = (position - limit - 0.5).abs() < 1e-3
    assert parameter.grad is not None
    assert torch.equal(parameter.grad[~near], (position.round() <= limit).float()[~near])
    assert clipped or bool((parameter.grad == 1).all())


def test_the_largest_weight_becomes_the_largest_integer() -> None:
    weight = torch.tensor([[0.5, -2.0, 1.0], [0.1, 0.0, 0.05]])
    for bits in range(2, 9):
        scale = symmetric_scale(weight.abs().amax(1), bits)
        integers = to_integers(weight, scale, 0, bits)
        assert integers.abs().amax(1).tolist() == [weight_limit(bits)] * 2
        assert int(integers[0, 1]) == -weight_limit(bits)


@settings(deadline=None, max_examples=100)
@given(BITS, st.lists(st.integers(1, 5), min_size=1, max_size=3), SEEDS, st.booleans(), st.floats(0.02, 2))
def test_learned_step_sizes_give_the_papers_values_and_gradients(
    bits: int, shape: list[int], seed: int, channels: bool, size: float
) -> None:
    """Esser et al. 2020, equations 1 to 3 and 5, in double precision."""
    low, high = -weight_limit(bits), weight_limit(bits)
    x = tensor(shape, seed).double().requires_grad_()
    count = shape[0] if channels else 1
    scale = (size * (1 + torch.rand(count, generator=torch.Generator().manual_seed(seed)))).double()
    scale = scale.view(-1, *[1] * (len(shape) - 1)).requires_grad_()
    factor = gradient_factor(x.numel(), high)
    assert factor == pytest.approx(1 / np.sqrt(x.numel() * high))
    output = LearnedStep.apply(x, scale, low, high, factor)
    weights = torch.randn_like(x)
    (output * weights).sum().backward()
    v = (x / scale).detach().numpy()
    by_step = np.where(v <= low, low, np.where(v >= high, high, np.rint(v) - v))
    by_value = (v > low) & (v < high)
    expected = (np.clip(np.rint(v), low, high) * scale.detach().numpy(), weights.numpy() * by_value)
    assert np.allclose(output.detach().numpy(), expected[0], atol=1e-12)
    assert x.grad is not None
    assert scale.grad is not None
    assert np.allclose(x.grad.numpy(), expected[1], atol=1e-12)
    axes = tuple(range(1, len(shape))) if channels else tuple(range(len(shape)))
    sums = (weights.numpy() * by_step).sum(axis=axes) * factor
    assert np.allclose(scale.grad.numpy().reshape(-1), sums.reshape(-1), atol=1e-10)


def test_a_learned_step_size_starts_as_in_the_paper_but_within_the_range() -> None:
    mean, limit = torch.tensor(0.8), weight_limit(4)
    assert float(initial_step(mean, torch.tensor(9.0), limit)) == pytest.approx(2 * 0.8 / 7**0.5)
    assert float(initial_step(mean, torch.tensor(0.1), limit)) == pytest.approx(0.1)


def test_a_learned_step_size_shrinks_to_one_half_at_most() -> None:
    step = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    with at_most_halved([step]):
        step.data.copy_(torch.tensor([-3.0, 0.8]))
    assert step.tolist() == pytest.approx([0.5, 0.8])
    for _ in range(300):
        with at_most_halved([step]):
            step.data.fill_(-1.0)
    assert float(step.detach().min()) > 0


def test_clipping_in_one_channel_does_not_affect_another() -> None:
    x = torch.tensor([[3.0, 0.4], [0.3, -0.1]], requires_grad=True)
    output = fake_quantize_channels(x, torch.tensor([[0.1], [0.1]]), 7)
    assert output.tolist() == [[pytest.approx(0.7), pytest.approx(0.4)], [pytest.approx(0.3), pytest.approx(-0.1)]]
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 1], [1, 1]]
