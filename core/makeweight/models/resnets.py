"""Residual networks for small images: a 3×3 first convolution, and no pooling before the stages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm, added to the shortcut (He et al. 2016, figure 2).

    If the shape changes, the shortcut subsamples with stride 2 and pads new channels with zeros (option A, used for
    CIFAR in section 4.2). With `projection`, it is a 1×1 convolution with batch norm instead (option B).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs
        self.downsample: nn.Module | None = None
        if projection and (stride > 1 or self.added):
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, H / stride, W / stride]
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            shortcut: Tensor = self.downsample(x)
            return shortcut
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return pad(x, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2)) if self.added else x


class ResNet(nn.Module):
    """A 3×3 convolution, stages `layer1`, `layer2`, … of blocks that each halve height and width, and a classifier.

    The first stage keeps the size. `blocks` and `widths` are the numbers of blocks and of channels of each stage.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, blocks: Sequence[int],
                 widths: Sequence[int], projection: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = [f"layer{number + 1}" for number in range(len(blocks))]
        inputs = widths[0]
        for number, (name, count, width) in enumerate(zip(self.stages, blocks, widths, strict=True)):
            first = Block(inputs, width, 1 if number == 0 else 2, projection)
            rest = [Block(width, width, 1, projection) for _ in range(count - 1)]
            self.add_module(name, nn.Sequential(first, *rest))
            inputs = width
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
        x = torch.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


RESNETS = {
    f"resnet{6 * count + 2}": partial(ResNet, blocks=[count] * 3, widths=[16, 32, 64]) for count in (3, 5, 7, 9, 18)
} | {"cifar-resnet18": partial(ResNet, blocks=[2] * 4, widths=[64, 128, 256, 512], projection=True)}
"""resnet20, 32, 44, 56 and 110 of He et al. 2016, section 4.2, and ResNet-18 with a 3×3 first convolution for 32×32"""
