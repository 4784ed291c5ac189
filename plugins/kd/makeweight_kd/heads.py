"""The shallow classifiers of self-distillation, for feature maps and for vectors."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d


class Head(nn.Module):
    """A bottleneck, pooling and a classifier after a section, and an adapter to the deepest features.

    A feature map [B, C, H, W] goes through 1×1, strided 3×3 and 1×1 convolutions (Zhang et al. 2019, figure 2) and is
    pooled to a vector; a vector [B, D], or the mean of tokens [B, T, D], through one hidden layer. The adapter is
    linear: it gives features [B, width] that can be compared with those that the deepest classifier sees.
    """

    def __init__(self, example: Tensor, width: int, num_classes: int) -> None:
        super().__init__()
        channels = example.shape[-1] if example.ndim == 3 else example.shape[1]
        if example.ndim == 4:
            inner = max(channels // 2, 8)
            stride = 2 if min(example.shape[-2:]) > 4 else 1
            self.bottleneck: nn.Module = nn.Sequential(
                nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
                nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
                nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            )  # fmt: skip
        else:
            self.bottleneck = nn.Sequential(nn.ReLU(), nn.Linear(channels, channels), nn.ReLU())
        self.classifier = nn.Linear(channels, num_classes)
        self.adapter = nn.Linear(channels, width)

    def forward(self, section: Tensor) -> tuple[Tensor, Tensor]:  # -> [B, classes], [B, width]
        features = pooled(self.bottleneck(section.mean(1) if section.ndim == 3 else section))
        return self.classifier(features), self.adapter(features)


def pooled(features: Tensor) -> Tensor:
    """A feature map [B, C, H, W] averaged over its places, tokens [B, T, D] over the tokens; a vector as it is."""
    if features.ndim == 4:
        return adaptive_avg_pool2d(features, 1).flatten(1)
    return features.mean(1) if features.ndim == 3 else features
