"""Sections of every torchvision classification family, of plain networks, and of modules given by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from makeweight import UsageError
from makeweight.models.by_name import build
from makeweight_kd.sections import find_maps, find_sections

from .helpers_kd import traced


@pytest.fixture(autouse=True)
def meta_device() -> Iterator[None]:
    """Sections depend on shapes only: models are built on the meta device, without weights."""
    with torch.device("meta"):
        yield


@pytest.mark.parametrize(
    ("name", "size", "sections"),
    [
        ("resnet18", 32, ["layer1", "layer2", "layer3"]),
        ("resnext50_32x4d", 32, ["layer1", "layer2", "layer3"]),
        ("wide_resnet50_2", 32, ["layer1", "layer2", "layer3"]),
        ("resnet20", 32, ["layer1", "layer2"]),
        ("cifar-resnet18", 32, ["layer1", "layer2", "layer3"]),
        ("vgg11_bn", 32, ["features.7", "features.14", "features.21"]),
        ("vgg19_bn", 32, ["features.13", "features.26", "features.39"]),
        ("alexnet", 64, ["features.5"]),
        ("mobilenet_v2", 32, ["features.3", "features.6", "features.13"]),
        ("mobilenet_v3_small", 64, ["features.1", "features.3", "features.8"]),
        ("mnasnet0_5", 32, ["layers.8", "layers.9", "layers.11"]),
        ("efficientnet_b0", 32, ["features.2", "features.3", "features.5"]),
        ("convnext_tiny", 32, ["features.1", "features.3", "features.5"]),
        ("densenet121", 32, ["features.transition1", "features.transition2", "features.transition3"]),
        ("squeezenet1_0", 64, ["features.6", "features.11"]),
        ("shufflenet_v2_x0_5", 32, ["stage2", "stage3"]),
        ("regnet_y_400mf", 32, ["trunk_output.block1", "trunk_output.block2", "trunk_output.block3"]),
        ("googlenet", 64, ["maxpool2", "maxpool3", "maxpool4"]),
        ("inception_v3", 96, ["maxpool2", "Mixed_5d", "Mixed_6e"]),
        ("swin_t", 64, ["features.1", "features.3", "features.5"]),
    ],
)
def test_a_network_is_cut_where_its_resolution_halves(name: str, size: int, sections: list[str]) -> None:
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # whose widths are computed with tensors
        model = build(name, (3, size, size), 10)
    assert find_sections(traced(model.to("meta"), 3, size, size)) == sections


def test_a_vision_transformer_is_cut_after_its_blocks() -> None:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, num_layers=7, num_heads=2, hidden_dim=64, mlp_dim=128, num_classes=10)
    blocks = [f"encoder.layers.encoder_layer_{number}" for number in (1, 3, 5)]
    assert find_sections(traced(model, 3, 32, 32)) == blocks


@pytest.mark.parametrize(("name", "sections"), [("lenet300", ["fc1", "fc2"]), ("lenet5", ["conv1", "conv2", "fc1"])])
def test_a_network_whose_resolution_never_halves_is_cut_after_its_layers(name: str, sections: list[str]) -> None:
    assert find_sections(traced(build(name, (1, 28, 28), 10), 1, 28, 28)) == sections


def test_sections_of_a_plain_sequential_network_are_spread_over_its_layers() -> None:
    model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(4, 4), nn.ReLU())], nn.Linear(4, 2))
    assert find_sections(traced(model, 4)) == ["2", "6", "10"]


class Wrapper(nn.Module):
    """A backbone and a classifier in one module, a common pattern."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: torch.Tensor = self.classifier(torch.relu(self.backbone(x)))
        return logits


def test_a_wrapped_network_has_the_sections_of_the_network_itself() -> None:
    model = Wrapper(build("resnet20", (1, 16, 16), 10))
    assert find_sections(traced(model, 1, 16, 16)) == ["backbone.layer1", "backbone.layer2"]


class Backwards(nn.Module):
    """Defines its layers in another order than it calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, 10)
        self.second = nn.Conv2d(8, 8, 3, 2, 1)
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: torch.Tensor = self.classifier(self.second(self.first(x)).mean((2, 3)))
        return logits


def test_sections_follow_the_order_of_the_calls() -> None:
    assert find_sections(traced(Backwards(), 1, 8, 8)) == ["first"]


def test_sections_can_be_named_and_unknown_names_are_refused() -> None:
    trace = traced(build("resnet18", (3, 32, 32), 10), 3, 32, 32)
    assert find_sections(trace, ["layer2", "layer3.0"]) == ["layer2", "layer3.0"]
    with pytest.raises(UsageError, match=r"kd\.sections: no module matches 'layer9': did you mean"):
        find_sections(trace, ["layer9"])


def test_a_network_of_one_layer_has_no_sections() -> None:
    with pytest.raises(UsageError, match="name a teacher"):
        find_sections(traced(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 4))


def test_a_module_that_is_called_twice_cannot_end_a_section() -> None:
    trace = traced(build("lenet5", (1, 28, 28), 10), 1, 28, 28)
    with pytest.raises(
        UsageError, match=r"kd\.sections pool: expected a module called once, this one is called 2 times"
    ):
        trace.output_of("pool")


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("resnet20", ["layer1", "layer2", "layer3"]),
        ("vgg11_bn", ["features.7", "features.14", "features.21", "features.27"]),
        ("densenet121", ["features.transition1", "features.transition2", "features.transition3", "features"]),
        ("lenet5", ["conv1", "conv2"]),
    ],
)
def test_attention_is_compared_at_the_end_of_every_section_including_the_last(name: str, maps: list[str]) -> None:
    assert find_maps(traced(build(name, (3, 32, 32), 10), 3, 32, 32)) == maps


def test_a_network_without_feature_maps_has_no_attention() -> None:
    with pytest.raises(UsageError, match="no feature maps"):
        find_maps(traced(build("lenet300", (1, 8, 8), 10), 1, 8, 8))
