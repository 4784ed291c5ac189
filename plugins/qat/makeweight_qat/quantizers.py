"""Quantizers as pure functions on tensors, and their gradients.

A value x becomes the integer q = clamp(round(x / s) + z, low, high), rounded half to even, with step size (scale) s and
zero point z. It is dequantized as s (q - z). Weights have symmetric quantizers, with z = 0 and low = -high, so a pruned
zero stays zero. Activations have affine quantizers, with a zero point.
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
"""smallest step size, for tensors of zeros: it and its reciprocal are finite in float32"""


def weight_limit(bits: int) -> int:
    """The largest integer of a symmetric quantizer: 127 for 8 bits, 1 for 2."""
    return (1 << (bits - 1)) - 1


def symmetric_scale(largest: Tensor, bits: int) -> Tensor:
    """The smallest step size that does not clip magnitudes up to `largest`, in the shape of `largest`."""
    return (largest / weight_limit(bits)).clamp_min(SMALLEST)


def affine_parameters(bounds: Array, limit: Array) -> tuple[Array, Array]:
    """Step sizes and zero points [...], float32, that map ranges to the integers 0 to `limit`.

    `bounds` is [2, ...]: the negated minimum and the maximum, as tensors or NumPy arrays. Ranges are widened to contain
    0. Zero is exactly representable (Jacob et al. 2018, section 2.1): padding and the zeros of a ReLU keep their value.
    """
    bounds = bounds.clip(0)
    scale = (bounds.sum(0) / limit).clip(SMALLEST)
    return scale, (bounds[0] / scale).round().clip(None, limit)


def fake_quantize(x: Tensor, inverse: Any, scale: Any, low: float, high: float) -> Tensor:
    """Quantize x to the integers low..high, relative to the zero point, and dequantize them; in the shape of x.

    `inverse` is 1 / scale in float32. The gradient passes where x is not clipped, else it is 0 (Jacob et al. 2018).
    It is the gradient of hardtanh, whose output is then overwritten outside of autograd, which saves only x. On a CPU
    these vectorised passes take a tenth of the time of torch's own operators, and give the same bits.
    """
    step = float(scale)
    output = torch.nn.functional.hardtanh(x, (low - 0.5) * step, (high + 0.5) * step)
    output.data.mul_(inverse).round_().clamp_(low, high).mul_(scale)
    return output


def fake_quantize_whole(x: Tensor, scale: Tensor) -> Tensor:
    """`fake_quantize` without clipping, for a range that covers all of x; the gradient is passed through unchanged."""
    output = x.clone()
    output.data.mul_(1 / scale).round_().mul_(scale)
    return output


def fake_quantize_channels(x: Tensor, scale: Tensor, limit: float) -> Tensor:
    """`fake_quantize` to -limit..limit with a scale per channel; `scale` broadcasts to x."""
    output = x.clamp(-(limit + 0.5) * scale, (limit + 0.5) * scale)
    output.data.mul_(1 / scale).round_().clamp_(-limit, limit).mul_(scale)
    return output


class LearnedStep(torch.autograd.Function):
    """Learned step size quantization (Esser et al. 2020, equations 1 to 3 and 5).

    `scale`, the step size, broadcasts to x; its gradient is multiplied by `factor`. `low` and `high` are the limits of
    the integers relative to the zero point.
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
        passed = torch.ops.aten.hardtanh_backward(gradient, steps, *context.range)  # 0 where x was clipped
        by_step = (gradient - passed).mul_(steps).addcmul_(gradient, residual)
        return passed, by_step.sum_to_size(scale.shape).mul_(context.factor), None, None, None


def initial_step(mean: Tensor, largest_step: Tensor, limit: float | Tensor) -> Tensor:
    """The initial value of a learned step size: 2 ⟨|v|⟩ / √Q (Esser et al. 2020, section 2.1), at most `largest_step`.

    `mean` is ⟨|v|⟩, `limit` Q, the largest integer, and `largest_step` the step size that clips nothing. The paper's
    value suits few bits; at 8 bits it would waste two of them on a range that no value reaches.
    """
    return torch.minimum(2 * mean / limit**0.5, largest_step).clamp_min(SMALLEST)


def gradient_factor(count: int, limit: int) -> float:
    """The factor of a step size's gradient: 1 / √(N Q) (Esser et al. 2020, section 2.2).

    N is `count`, the number of values with this step size, and Q is `limit`, the largest integer.
    """
    return float((max(count, 1) * limit) ** -0.5)


@contextmanager
def at_most_halved(steps: list[Tensor]) -> Iterator[None]:
    """Keep learned step sizes positive: in this context each shrinks to one half at most, and not below SMALLEST."""
    halves = list(torch._foreach_mul([step.detach() for step in steps], 0.5)) if steps else []
    if steps:
        torch._foreach_clamp_min_(halves, SMALLEST)
    yield
    if steps:
        torch._foreach_maximum_([step.detach() for step in steps], halves)
