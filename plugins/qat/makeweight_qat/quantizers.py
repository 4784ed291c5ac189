"""Quantizers as pure functions on tensors, and their gradients.

An integer is q = clamp(round(x / s) + z, low, high), rounded half to even; what it stands for is s (q - z).
Weights are symmetric: z = 0, and -high..high, so that a zero stays a zero; activations have a zero point.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Array = TypeVar("Array", Tensor, np.ndarray)
SMALLEST = 1e-30
"""the least step: a tensor of zeros has it, and neither it nor its reciprocal leaves the range of float32"""


def weight_limit(bits: int) -> int:
    """The largest integer of a symmetric quantizer: 127 for 8 bits, 1 for 2."""
    return 2 ** (bits - 1) - 1


def symmetric_scale(largest: Tensor, bits: int) -> Tensor:
    """The step at which magnitudes up to `largest` are not clipped, of its shape."""
    return (largest / weight_limit(bits)).clamp_min(SMALLEST)


def affine_parameters(bounds: Array, limit: Array) -> tuple[Array, Array]:
    """Steps and zero points, float32 both, of the integers 0 to `limit` over ranges widened to hold 0.

    `bounds` is [2, …]: the lowest value with its sign turned, and the highest. Zero is one of the values (Jacob et al.
    2018, section 2.1), so padding and the zeros of a ReLU are exact. Tensors, or arrays of NumPy.
    """
    bounds = bounds.clip(0)
    scale = (bounds.sum(0) / limit).clip(SMALLEST)
    return scale, (bounds[0] / scale).round().clip(None, limit)


def fake_quantize(x: Tensor, inverse: Any, scale: Any, low: float, high: float) -> Tensor:
    """The values that the integers low..high, their zero point taken off, stand for; `inverse` is 1 / scale in float32.

    The gradient passes straight through where the integer is within them (Jacob et al. 2018): it is hardtanh's, whose
    values are then replaced in place, unseen by autograd, which keeps x alone for it. Vectorised passes take a tenth of
    the time of torch's own operators on a CPU, which they equal to the bit.
    """
    step = float(scale)
    output = torch.nn.functional.hardtanh(x, (low - 0.5) * step, (high + 0.5) * step)
    output.data.mul_(inverse).round_().clamp_(low, high).mul_(scale)
    return output


def fake_quantize_whole(x: Tensor, scale: Tensor) -> Tensor:
    """The same where the range holds all of x: nothing is clipped, and the gradient is passed on as it is."""
    output = x.clone()
    output.data.mul_(1 / scale).round_().mul_(scale)
    return output


def fake_quantize_channels(x: Tensor, scale: Tensor, limit: float) -> Tensor:
    """The same with a scale for each channel, as many dimensions as x, where something may be clipped."""
    output = x.clamp(-(limit + 0.5) * scale, (limit + 0.5) * scale)
    output.data.mul_(1 / scale).round_().clamp_(-limit, limit).mul_(scale)
    return output


class LearnedStep(torch.autograd.Function):
    """Learned step size quantization (Esser et al. 2020): equations 1 to 3 and 5, the step's gradient times `factor`.

    `scale` has as many dimensions as x, or one element. With a zero point z the limits are those of q - z.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, scale: Tensor, low: float, high: float, factor: float) -> Tensor:
        steps = (x * (1 / scale)).clamp_(low, high)
        integers = steps.round()
        context.save_for_backward(steps, integers - steps, scale)
        context.range, context.factor = (low, high), factor
        return integers.mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        steps, residual, scale = context.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(gradient, steps, *context.range)  # zero where it was clipped
        by_step = (gradient - passed).mul_(steps).addcmul_(gradient, residual)
        return passed, by_step.sum_to_size(scale.shape).mul_(context.factor), None, None, None


def first_step(mean: Tensor, largest_step: Tensor, limit: float | Tensor) -> Tensor:
    """Where a learned step begins: 2 ⟨|v|⟩ / √Q (Esser et al. 2020, section 2.1), no wider than clips nothing.

    The paper's value suits few bits; at 8 it would spend two of them on a range that nothing reaches.
    """
    return torch.minimum(2 * mean / limit**0.5, largest_step).clamp_min(SMALLEST)


def gradient_factor(count: int, limit: int) -> float:
    """1 / √(N Q), by which a step's gradient is scaled (Esser et al. 2020, section 2.2)."""
    return (max(count, 1) * limit) ** -0.5


@contextmanager
def at_most_halved(steps: list[Tensor]) -> Iterator[None]:
    """Keep learned steps above zero: none gets smaller than half of what it was, nor than the least there is."""
    halves = list(torch._foreach_mul([step.detach() for step in steps], 0.5)) if steps else []
    if steps:
        torch._foreach_clamp_min_(halves, SMALLEST)
    yield
    if steps:
        torch._foreach_maximum_([step.detach() for step in steps], halves)
