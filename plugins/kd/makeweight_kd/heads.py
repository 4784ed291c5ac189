"""The shallow classifiers of self-distillation, for feature maps, tokens and vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from .features import as_map, pooled

SMALLEST_WIDTH = 8
"""lower bound of the width of a head's features"""


def bottleneck(widths: Sequence[int], stride: int = 2) -> nn.Sequential:
    """Depthwise-separable convolutions in a row, n = len(widths) - 1 of them.

    The shapes are [B, widths[0], H, W] → [B, widths[n], H / stride^n, W / stride^n].

    They bring a section's map to the size and the channels of the deepest map (Zhang et al. 2019, figure 2). Separable
    convolutions, as in the authors' journal code, are cheap on the large maps of early sections.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        ]  # fmt: skip
    return nn.Sequential(*layers)


class Head(nn.Module):
    """A shallow classifier: a bottleneck, average pooling and a linear classifier.

    kind "map": the bottleneck is `bottleneck(widths, stride)`, and `widths` are its channels. kind "vector": it is one
    hidden layer from widths[0] to widths[-1], on a vector [B, D] or on the mean of tokens [B, T, D].
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
        logits: Tensor = self.classifier(self.features(section))
        return logits


def head_for(section: Tensor, deepest: Tensor | None, num_classes: int, width: int) -> Head:
    """A head for a section, chosen by the section's output [B, C, H, W], [B, T, D] or [B, D].

    `deepest` is the network's last feature map, or None; the bottleneck ends at its size. `width` is the length of the
    deepest features, the upper bound of the hidden layer of a "vector" head.
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
    """A ModuleDict under names that torch accepts: made of the sections' names, without dots, unlike any attribute."""
    return nn.ModuleDict({f"after:{section.replace('.', ':')}": module for section, module in modules.items()})
