"""The shallow classifiers of self-distillation, for feature maps and for vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from .features import as_map, pooled

SMALLEST_WIDTH = 8


def bottleneck(widths: Sequence[int], stride: int = 2) -> nn.Sequential:
    """Depthwise-separable convolutions [B, widths[0], H, W] → [B, widths[-1], H / 2^n, W / 2^n], one for each halving.

    They bring a section's map to the size and the channels of the deepest one, as the bottleneck of Zhang et al. 2019
    (figure 2) does; separable ones, as in the authors' journal code, cost little where the maps are large.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        ]  # fmt: skip
    return nn.Sequential(*layers)


class Head(nn.Module):
    """A bottleneck, pooling and a classifier after a section.

    A feature map goes through the bottleneck and is averaged over its places; a vector [B, D], or the mean of tokens
    [B, T, D], through one hidden layer. `widths` are the channels before and after each of its convolutions, or the
    width of the vector.
    """

    def __init__(self, kind: str, widths: Sequence[int], num_classes: int, stride: int = 2) -> None:
        super().__init__()
        self.kind, self.widths, self.stride = kind, list(widths), stride
        if kind == "map":
            self.bottleneck = bottleneck(widths, stride)
        else:
            self.bottleneck = nn.Sequential(nn.ReLU(), nn.Linear(widths[0], widths[-1]), nn.ReLU())
        self.classifier = nn.Linear(widths[-1], num_classes)

    def features(self, section: Tensor) -> Tensor:  # -> [B, widths[-1]]
        return pooled(self.bottleneck(as_map(section) if section.ndim == 4 else pooled(section)))

    def forward(self, section: Tensor) -> Tensor:  # -> [B, classes]
        return self.classifier(self.features(section))


def head_for(section: Tensor, deepest: Tensor | None, num_classes: int, width: int) -> Head:
    """A head for a section with this output; `deepest` is the last feature map of the network, where it has one.

    `width` is that of the deepest features: a vector's hidden layer is no wider.
    """
    if section.ndim != 4:
        given = section.shape[-1]
        return Head("vector", [given, min(given, max(width, SMALLEST_WIDTH))], num_classes)
    _, channels, height, _ = as_map(section).shape
    _, most, end, _ = as_map(deepest).shape if deepest is not None else (0, channels, 1, 1)
    widths = [channels]
    while height > end and height > 1:
        height = (height + 1) // 2
        widths.append(min(2 * widths[-1], max(most, channels, SMALLEST_WIDTH)))
    return Head("map", widths, num_classes) if len(widths) > 1 else Head("map", [channels, channels], num_classes, 1)


def by_section(modules: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Modules under names of their sections that torch takes: without dots, and none that its own attributes have."""
    return nn.ModuleDict({f"after:{section.replace('.', ':')}": module for section, module in modules.items()})
