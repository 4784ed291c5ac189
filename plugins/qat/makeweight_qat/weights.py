"""The parametrization of a weight: a symmetric quantizer for each output channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .quantizers import (
    LearnedStep,
    fake_quantize_channels,
    fake_quantize_whole,
    first_step,
    gradient_factor,
    symmetric_scale,
    weight_limit,
)


def channel_axis(layer: nn.Module) -> int:
    """The dimension of a layer's weight that is its output channels."""
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0


def over_channels(values: Tensor, weight: Tensor, axis: int) -> Tensor:
    """One value for each channel, [C], in a shape that spreads over the weight."""
    return values.view([-1 if dim == axis else 1 for dim in range(weight.ndim)])


def rows(weight: Tensor, axis: int) -> Tensor:
    """The weights of each channel: [C, n]."""
    return weight.movedim(axis, 0).flatten(1)


class QuantizedWeight(nn.Module):
    """Behind `layer.weight`: its values on a grid for each channel. What is off passes the weight on as it is.

    `ranges` minmax: up to each channel's largest magnitude; percentile: up to that share of its magnitudes; learned:
    the steps are parameters.
    """

    def __init__(self, weight: Tensor, axis: int, bits: int, ranges: str, percentile: float) -> None:
        super().__init__()
        self.axis, self.bits, self.ranges, self.percentile = axis, bits, ranges, percentile
        self.on = False
        channels = weight.shape[axis]
        self.factor = gradient_factor(weight.numel() // channels, 1)
        if ranges == "learned":
            self.step = nn.Parameter(torch.ones(channels, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        if not self.on:
            return weight
        limit = weight_limit(self.bits)
        if self.ranges == "learned":
            scale = over_channels(self.step, weight, self.axis)
            return LearnedStep.apply(weight, scale, -limit, limit, self.factor * limit**-0.5)
        with torch.no_grad():
            scale = symmetric_scale(self._largest(weight), self.bits)
        if self.ranges == "percentile":
            return fake_quantize_channels(weight, scale, limit)
        return fake_quantize_whole(weight, scale)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def scale(self, weight: Tensor) -> Tensor:
        """The step of each channel, [C]."""
        if self.ranges == "learned":
            return self.step
        with torch.no_grad():
            return symmetric_scale(self._largest(weight), self.bits).flatten()

    def begin(self, weight: Tensor) -> None:
        """Set learned steps to where they begin, for the bits that hold now."""
        if self.ranges == "learned":
            with torch.no_grad():
                largest = symmetric_scale(rows(weight, self.axis).abs().amax(1), self.bits)
                mean = rows(weight, self.axis).abs().mean(1)
                self.step.copy_(first_step(mean, largest, weight_limit(self.bits)))

    def _largest(self, weight: Tensor) -> Tensor:
        """The magnitude up to which each channel goes, spread over the weight."""
        if self.ranges == "percentile":
            magnitudes = rows(weight, self.axis).abs()
            count = max(round(magnitudes.shape[1] * self.percentile / 100), 1)
            largest = magnitudes.kthvalue(count, dim=1).values
            largest = torch.where(largest > 0, largest, magnitudes.amax(1))  # where nearly all were pruned
            return over_channels(largest, weight, self.axis)
        others = [dim for dim in range(weight.ndim) if dim != self.axis]
        return weight.abs().amax(others, keepdim=True)


def to_integers(values: Tensor, scale: Tensor, axis: int) -> Tensor:
    """The int8 integers that values on the grid stand for."""
    return (values / over_channels(scale, values, axis)).round().to(torch.int8)


def from_integers(integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    """The values that integers stand for, float32."""
    return integers * over_channels(scale, integers, axis)
