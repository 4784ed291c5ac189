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


class QuantizedWeight(nn.Module):
    """Behind `layer.weight`: its values on a grid for each channel; identity while off.

    `ranges` percentile: up to that share of each channel's magnitudes; learned: the steps are parameters; any other: up
    to each channel's largest magnitude.
    """

    def __init__(self, weight: Tensor, axis: int, bits: int, ranges: str, percentile: float) -> None:
        super().__init__()
        self.axis, self.bits, self.ranges, self.percentile = axis, bits, ranges, percentile
        self.on = self.begun = False
        channels = weight.shape[axis]
        self.factor = gradient_factor(weight.numel() // channels, weight_limit(bits))
        if ranges == "learned":
            self.step = nn.Parameter(torch.ones(channels, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        if not self.on:
            return weight
        limit = weight_limit(self.bits)
        if self.ranges == "learned":
            scale = over_channels(self.step, weight, self.axis)
            return LearnedStep.apply(weight, scale, -limit, limit, self.factor)
        scale = over_channels(self.scale(weight), weight, self.axis)
        if self.ranges == "percentile":
            return fake_quantize_channels(weight, scale, limit)
        return fake_quantize_whole(weight, scale)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    @torch.no_grad()
    def scale(self, weight: Tensor) -> Tensor:
        """The step of each channel, [C]; of learned steps that have not begun, where they would."""
        if self.begun:
            return self.step.detach()
        magnitudes = weight.movedim(self.axis, 0).flatten(1).abs()  # [C, n]
        largest = magnitudes.amax(1)
        if self.ranges == "percentile":
            count = max(round(magnitudes.shape[1] * self.percentile / 100), 1)
            within = magnitudes.kthvalue(count, dim=1).values
            largest = torch.where(within > 0, within, largest)  # where nearly all were pruned
        scale = symmetric_scale(largest, self.bits)
        return first_step(magnitudes.mean(1), scale, weight_limit(self.bits)) if self.ranges == "learned" else scale

    def turn_on(self, weight: Tensor) -> None:
        """Quantize from now on; learned steps begin, unless they have."""
        if self.ranges == "learned" and not self.begun:
            self.begin(self.scale(weight))
        self.on = True

    @torch.no_grad()
    def begin(self, step: Tensor) -> None:
        """Let the learned steps be these, [C]."""
        self.step.copy_(step)
        self.begun = True


def to_integers(values: Tensor, scale: Tensor, axis: int, bits: int) -> Tensor:
    """The int8 integers nearest to values, within those of so many bits."""
    limit = weight_limit(bits)
    return (values / over_channels(scale, values, axis)).round().clamp(-limit, limit).to(torch.int8)


def from_integers(integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    """The values that integers stand for, float32."""
    return integers * over_channels(scale, integers, axis)
