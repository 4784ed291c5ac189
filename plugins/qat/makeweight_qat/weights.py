"""The parametrization of a quantized weight: a symmetric quantizer with a scale per output channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .quantizers import (
    LearnedStep,
    fake_quantize_channels,
    fake_quantize_whole,
    gradient_factor,
    initial_step,
    symmetric_scale,
    weight_limit,
)


def channel_axis(layer: nn.Module) -> int:
    """The dimension of the output channels in a layer's weight: 1 for transposed convolutions, else 0."""
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0


def over_channels(values: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Reshape one value per channel, [C], so that it broadcasts to the weight."""
    return values.view([-1 if dim == axis else 1 for dim in range(weight.ndim)])


class QuantizedWeight(nn.Module):
    """The parametrization of `layer.weight`: quantizes each output channel on its own grid; identity while off.

    A channel's scale covers, with `ranges` "percentile", that percentage of its magnitudes; otherwise its largest
    magnitude. With "learned", the scales are the parameter `step` [C].
    """

    def __init__(self, weight: Tensor, axis: int, bits: int, ranges: str, percentile: float) -> None:
        super().__init__()
        self.axis, self.bits, self.ranges, self.percentile = axis, bits, ranges, percentile
        self.on = self.initialised = False
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
            quantized: Tensor = LearnedStep.apply(weight, scale, -limit, limit, self.factor)
            return quantized
        scale = over_channels(self.scale(weight), weight, self.axis)
        if self.ranges == "percentile":
            return fake_quantize_channels(weight, scale, limit)
        return fake_quantize_whole(weight, scale)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    @torch.no_grad()
    def scale(self, weight: Tensor) -> Tensor:
        """The scale of each channel, [C]; for uninitialised learned step sizes, their initial value for this weight."""
        if self.initialised:
            return self.step.detach()
        magnitudes = weight.movedim(self.axis, 0).flatten(1).abs()  # [C, n]
        largest = magnitudes.amax(1)
        if self.ranges == "percentile":
            count = max(round(magnitudes.shape[1] * self.percentile / 100), 1)
            within = magnitudes.kthvalue(count, dim=1).values
            largest = torch.where(within > 0, within, largest)  # 0 where nearly all weights are pruned
        scale = symmetric_scale(largest, self.bits)
        return initial_step(magnitudes.mean(1), scale, weight_limit(self.bits)) if self.ranges == "learned" else scale

    def turn_on(self, weight: Tensor) -> None:
        """Start to quantize, and initialise learned step sizes that are not initialised yet."""
        if self.ranges == "learned" and not self.initialised:
            self.initialise(self.scale(weight))
        self.on = True

    @torch.no_grad()
    def initialise(self, step: Tensor) -> None:
        """Initialise the learned step sizes with these, [C]."""
        self.step.copy_(step)
        self.initialised = True


def to_integers(values: Tensor, scale: Tensor, axis: int, bits: int) -> Tensor:
    """Quantize to int8 integers of `bits` bits, in the shape of `values`; `scale` is [C]."""
    limit = weight_limit(bits)
    return (values / over_channels(scale, values, axis)).round().clamp(-limit, limit).to(torch.int8)


def from_integers(integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Dequantize integers with the scales [C], to float32."""
    return integers * over_channels(scale, integers, axis)
