"""Schedules, random numbers and augmentation against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from makeweight.data.augmentation import crop_flip, shift
from makeweight.errors import UsageError
from makeweight.options import StageOptions
from makeweight.seeding import StepSeed, mix, sample_noise
from makeweight.training.optimizers import build_optimizer, learning_rate, parameter_groups


def test_cosine_equals_torchs() -> None:
    options = StageOptions(epochs=20, lr=0.3, schedule="cosine")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for epoch in range(20):
        assert learning_rate(options, epoch) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_steps_fall_by_gamma_at_the_milestones() -> None:
    options = StageOptions(epochs=250, lr=0.1, schedule="step", milestones=[83, 166, 240])
    rates = [learning_rate(options, epoch) for epoch in (0, 82.99, 83, 165, 166, 239, 240)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001])


def test_warmup_rises_from_zero_and_the_schedule_takes_what_remains() -> None:
    options = StageOptions(epochs=10, lr=1.0, warmup=2, schedule="linear")
    assert [learning_rate(options, done) for done in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert learning_rate(StageOptions(epochs=4, lr=0.5, schedule="constant"), 3.9) == 0.5


def test_optimizers_are_those_named() -> None:
    named = {"fc.weight": torch.nn.Parameter(torch.zeros(2)), "fc.bias": torch.nn.Parameter(torch.zeros(1))}
    sgd = build_optimizer(parameter_groups(named, [], 0.0), StageOptions(momentum=0.8))
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["nesterov"]
    assert sgd.param_groups[0]["lr"] == 0.03
    groups = parameter_groups(named, [(["*.bias"], {"weight_decay": 0.0, "lr_scale": 2.0})], 0.05)
    adamw = build_optimizer(groups, StageOptions(optimizer="adamw"))
    assert isinstance(adamw, torch.optim.AdamW)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.05, 0.0]
    assert [len(group["params"]) for group in adamw.param_groups] == [1, 1]
    assert adamw.param_groups[1]["params"][0] is named["fc.bias"]
    with pytest.raises(UsageError, match=r"no parameter matches 'fc\.wait': did you mean 'fc\.weight'"):
        parameter_groups(named, [(["fc.wait"], {})], 0.0)
    with pytest.raises(UsageError, match="no parameter to train"):
        parameter_groups({"a": torch.nn.Parameter(torch.zeros(1), requires_grad=False)}, [], 0.0)


def test_mix_is_splitmix64() -> None:
    """The first outputs of the reference implementation with seed 0 and 1234567."""
    assert mix(0) == 0xE220A8397B1DCDAF >> 1
    assert mix(1234567) == 6457827717110365317 >> 1


def test_noise_depends_on_the_sample_and_the_counters_alone() -> None:
    indices = torch.tensor([5, 900, 3])
    noise = sample_noise(indices, 4, 1, 2)
    assert noise.shape == (3, 4)
    assert torch.equal(noise[1], sample_noise(torch.tensor([900]), 4, 1, 2)[0])
    assert not torch.equal(noise, sample_noise(indices, 4, 1, 3))
    many = sample_noise(torch.arange(100_000), 2, 7)
    assert many.min() >= 0
    assert many.max() < 1
    assert many.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.005)
    assert many.var(0).tolist() == pytest.approx([1 / 12, 1 / 12], abs=0.001)
    assert abs(float(torch.corrcoef(many.T)[0, 1])) < 0.01


def test_a_step_seed_draws_what_manual_seed_would() -> None:
    StepSeed(torch.device("cpu"))(3, 4, 0)
    first = torch.rand(5)
    torch.manual_seed(mix(3, 4, 0))
    assert torch.equal(first, torch.rand(5))


def test_shift_moves_whole_pixels_and_fills_what_comes_in() -> None:
    images = torch.arange(2 * 3 * 10 * 10, dtype=torch.float32).view(2, 3, 10, 10)
    fill = torch.tensor([-1.0, -2.0, -3.0])
    moved = shift(images, torch.tensor([[0.0, 0.999, 0.0], [0.5, 0.5, 0.0]]), 0.1, fill)
    assert torch.equal(moved[1], images[1])
    assert torch.equal(moved[0, :, 1:, :-1], images[0, :, :-1, 1:])  # a row down, a column to the left
    assert torch.equal(moved[0, :, 0, :], fill[:, None].expand(3, 10))
    assert torch.equal(moved[0, :, :, -1], fill[:, None].expand(3, 10))


def test_crop_flip_mirrors_by_the_third_number() -> None:
    images = torch.rand(2, 1, 8, 8)
    cropped = crop_flip(images, torch.tensor([[0.5, 0.5, 0.2], [0.5, 0.5, 0.8]]))
    assert torch.equal(cropped[0], images[0].flip(-1))
    assert torch.equal(cropped[1], images[1])
    assert math.isclose(float(cropped.sum()), float(images.sum()), rel_tol=1e-5)
