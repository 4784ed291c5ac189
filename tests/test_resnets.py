"""The residual networks for small images are those of the paper."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from makeweight.models import by_name as models
from makeweight.models.resnets import Block


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet44", 658_586), ("resnet56", 853_018),
     ("resnet110", 1_727_962)],
)  # fmt: skip
def test_parameters_are_those_of_table_6(name: str, parameters: int) -> None:
    """He et al. 2016 give 0.27, 0.46, 0.66, 0.85 and 1.7 million."""
    model = models.build(name, (3, 32, 32), 10)
    assert sum(each.numel() for each in model.parameters()) == parameters
    assert sum(isinstance(each, torch.nn.Conv2d | torch.nn.Linear) for each in model.modules()) == int(name[6:])


@pytest.mark.parametrize(
    ("name", "multiplications"),
    [
        # conv1, the stages at 32, 16 and 8 pixels, fc; a stage's first convolution has half the channels before it
        ("resnet20", 27 * 16 * 1024 + 9 * (6 * 16 * 16 * 1024 + (5.5 * 32 * 32 * 256 + 5.5 * 64 * 64 * 64)) + 640),
        ("cifar-resnet18", 555_422_720),
    ],
)
def test_multiply_accumulates_of_an_image(name: str, multiplications: float) -> None:
    model = models.build(name, (3, 32, 32), 10).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() / 2 == multiplications


def test_the_resnet18_for_small_images_has_eleven_million_parameters() -> None:
    model = models.build("cifar-resnet18", (3, 32, 32), 100)
    assert sum(each.numel() for each in model.parameters()) == 11_220_132


def test_a_shortcut_without_parameters_takes_every_second_place_and_adds_channels_of_zeros() -> None:
    x = torch.randn(2, 4, 6, 6)
    out = Block(4, 8, 2, projection=False).shortcut(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()


def test_digits_are_taken_as_they_are() -> None:
    assert models.smallest_image("resnet20") == 8
    assert models.build("resnet20", (1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
