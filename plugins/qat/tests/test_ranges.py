from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from makeweight_qat.activations import AVERAGE, SAMPLED, FixedQuantizer, Ranges


def ranges(kind: str, count: int = 1, bits: int = 8, percentile: float = 90.0) -> Ranges:
    made = Ranges({("", str(index)): bits for index in range(count)}, kind, percentile)
    made.on = True
    return made


def step(made: Ranges, *batches: torch.Tensor) -> list[torch.Tensor]:
    """One training step with these micro-batches. Returns the quantized micro-batches."""
    made.observing = True
    out = [made.quantize(0, batch) for batch in batches]
    made.update(Accelerator(cpu=True))
    return out


def bounds(made: Ranges) -> list[float]:
    low, high = made.bounds[:, 0].tolist()
    return [-low, high]


def test_minmax_is_the_running_minimum_and_maximum() -> None:
    made = ranges("minmax")
    step(made, torch.tensor([-1.0, 2.0]))
    step(made, torch.tensor([-0.5, 3.0]), torch.tensor([-1.5, 0.0]))
    step(made, torch.tensor([0.1, 0.2]))
    assert bounds(made) == [-1.5, 3.0]
    assert float(made.scale) == pytest.approx(4.5 / 255)
    assert float(made.zero_point) == round(1.5 / (4.5 / 255))


def test_moving_averages_the_minimum_and_maximum_of_each_step() -> None:
    made = ranges("moving")
    step(made, torch.tensor([-1.0, 2.0]))
    assert bounds(made) == [-1.0, 2.0]
    step(made, torch.tensor([-3.0, 1.0]), torch.tensor([0.0, 4.0]))
    assert bounds(made) == pytest.approx([-1 - 2 * AVERAGE, 2 + 2 * AVERAGE])


@pytest.mark.parametrize("count", [1000, 3 * SAMPLED + 7])
def test_percentile_ignores_outliers(count: int) -> None:
    made = ranges("percentile")
    step(made, torch.linspace(-1, 1, count)[torch.randperm(count)])
    assert bounds(made) == pytest.approx([-0.8, 0.8], abs=0.02)


def test_a_step_uses_the_ranges_of_earlier_steps_and_the_first_step_its_own() -> None:
    made = ranges("minmax")
    first = torch.tensor([0.0, 0.3, 1.0])
    assert step(made, first)[0].tolist() == pytest.approx([0.0, 0.3, 1.0], abs=0.5 / 255)
    second = step(made, torch.tensor([5.0]))[0]
    assert float(second) == pytest.approx(1.0)
    assert float(made.quantize(0, torch.tensor([9.0]))) == pytest.approx(5.0)


def test_infinite_and_nan_observations_are_ignored() -> None:
    made = ranges("moving")
    step(made, torch.tensor([-1.0, 2.0]))
    for bad in (torch.inf, -torch.inf, torch.nan):
        step(made, torch.tensor([bad, 3.0]))
    assert bounds(made) == [-1.0, 2.0]


def test_a_tensor_that_a_step_does_not_compute_keeps_its_range() -> None:
    made = ranges("moving", count=2)
    step(made, torch.tensor([1.0]))
    assert made.seen.tolist() == [True, False]
    assert not made.all_seen()
    unseen = torch.tensor([0.12345])
    assert torch.equal(made.quantize(1, unseen), unseen)


def test_learned_step_sizes_are_initialised_in_the_first_step_and_trained() -> None:
    made = ranges("learned", bits=3)
    x = torch.rand(4, 50) * 2
    step(made, x)
    expected = min(2 * float(x.abs().mean()) / 7**0.5, float(x.max()) / 7)
    assert made.scales().tolist() == pytest.approx([expected])
    made.quantize(0, x).square().sum().backward()
    assert made.steps[0].grad is not None
    assert float(made.steps[0].grad) != 0


@pytest.mark.parametrize("kind", ["minmax", "learned"])
def test_ranges_are_restored_by_site_for_tensors_of_the_same_bits(kind: str) -> None:
    made, other = ranges(kind, count=2), ranges(kind)
    x = torch.randn(8, 5)
    step(made, x)
    assert list(made.known()) == [("", "0")]  # the other was never observed
    assert torch.equal(other.quantize(0, x), x)  # it has no observation
    other.restore(made.known())
    assert torch.equal(other.quantize(0, x), made.quantize(0, x))
    assert torch.equal(other.known()["", "0"][1], made.known()["", "0"][1])
    for changed in ({("", "0"): (4, made.known()["", "0"][1])}, {("fc", "0"): made.known()["", "0"]}):
        other.restore(changed)
        assert not other.all_seen()
        assert torch.equal(other.quantize(0, x), x)


@pytest.mark.parametrize("kind", ["minmax", "learned"])
def test_the_state_dict_restores_the_quantizers(kind: str) -> None:
    made, other = ranges(kind), ranges(kind)
    x = torch.randn(8, 5)
    step(made, x)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.quantize(0, x), made.quantize(0, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_quantized_in_float32(dtype: Any) -> None:
    made = ranges("minmax")
    x = torch.linspace(0, 1, 50).to(dtype)
    step(made, x)
    out = made.quantize(0, x)
    assert out.dtype == torch.float32
    assert torch.equal(out, FixedQuantizer(float(made.scale), int(made.zero_point), 8)(x))
