"""Turn the trained model into an integer program: folded batch norms, integer weights and biases, quantizers between.

In ONNX the quantizers are QuantizeLinear and DequantizeLinear, which onnxruntime fuses into integer operators. In a
program of torch.export, which has no such operators, they are plain arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .forwards import attach, detach
from .plan import Plan
from .quantizers import SMALLEST
from .tracing import Site
from .weights import QuantizedWeight, from_integers, over_channels, to_integers

BIAS_LIMIT = 2**30
"""largest magnitude of an integer bias: leaves room for the products that are added to it in 32 bits"""


class Integers(nn.Module):
    """A parametrization with a constant value: integers and the scale [C] of each channel along `axis`, dequantized."""

    integers: Tensor
    scale: Tensor
    zeros: Tensor

    def __init__(self, integers: Tensor, scale: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("integers", integers)
        self.register_buffer("scale", scale)
        self.register_buffer("zeros", torch.zeros(len(scale), dtype=integers.dtype))

    def forward(self, unused: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            return from_integers(self.integers, self.scale, self.axis)
        inputs, shape = (self.integers, self.scale, self.zeros), self.integers.shape
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", inputs, {"axis": self.axis}, dtype=torch.float32, shape=shape
        )


class QuantizeDequantize:
    """A quantizer of activations in a program: unsigned 8-bit integers, clipped where `bits` is below 8."""

    def __init__(self, scale: float, zero_point: float, bits: int) -> None:
        self.scale, self.zero_point, self.limit = scale, int(zero_point), 2**bits - 1

    def __call__(self, x: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            integers = (x / self.scale).round().clamp(-self.zero_point, self.limit - self.zero_point)
            return integers * self.scale
        scale = torch.tensor(self.scale, dtype=torch.float32)
        zero_point = torch.tensor(self.zero_point, dtype=torch.uint8)
        onnx = partial(torch.onnx.ops.symbolic, shape=x.shape)
        integers = onnx("QuantizeLinear", (x, scale, zero_point), dtype=torch.uint8)
        if self.limit < 255:
            bounds = (torch.tensor(0, dtype=torch.uint8), torch.tensor(self.limit, dtype=torch.uint8))
            integers = onnx("Clip", (integers, *bounds), dtype=torch.uint8)
        return onnx("DequantizeLinear", (integers, scale, zero_point), dtype=torch.float32)


def make_program(
    model: nn.Module, plan: Plan, weights: Mapping[str, QuantizedWeight], scales: Mapping[str, Tensor],
    activations: Mapping[Site, QuantizeDequantize],
) -> None:  # fmt: skip
    """Turn a model in eval mode into an integer program, in place.

    `weights` and `scales` hold the quantizer of each layer's weight and its scales [C]; `activations` the quantizers
    of the plan's tensors.
    """
    detach(model)
    for layer, quantizer in weights.items():
        scale = scales[layer].cpu()
        module: Any = model.get_submodule(layer)
        integers = to_integers(module.weight.detach(), scale, quantizer.axis, quantizer.bits)
        # Fewer than 8 bits fill the upper end of the byte: the same values with a finer scale, which biases share.
        integers, scale = integers << 8 - quantizer.bits, scale / (1 << 8 - quantizer.bits)
        if layer in plan.norms:
            integers, scale = _fold(model, plan.norms[layer], module, integers, scale, quantizer.axis)
        scale = scale.clamp_min(SMALLEST)
        source = activations.get(plan.inputs.get(layer, ("", "")))
        if source is not None and module.bias is not None and len(module.bias) == len(scale):
            integers, scale = _wide_enough(integers, scale, quantizer.axis, module.bias.detach() / source.scale)
            _quantize_bias(module, scale * source.scale)
        _replace(module, "weight", Integers(integers, scale, quantizer.axis))
    repeated = {site: activations[source] for site, source in plan.repeats.items() if source in activations}
    attach(model, {**activations, **repeated}, training=False)


def _fold(model: nn.Module, name: str, layer: Any, integers: Tensor, scale: Tensor,
          axis: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Fold a batch norm into the layer before it: w γ/σ and (b - μ) γ/σ + β, with σ² = variance + ε.

    Returns the integers and scales of the folded weight. The factor γ/σ of an output channel changes the scale of the
    channel's symmetric quantizer and the sign of its integers, but not their rounding. Training with a
    separate batch norm therefore equals training with it folded.
    """
    norm: Any = model.get_submodule(name)
    count = norm.num_features
    weight = torch.ones(count) if norm.weight is None else norm.weight.detach()
    bias = torch.zeros(count) if norm.bias is None else norm.bias.detach()
    factor = weight * (norm.running_var + norm.eps).rsqrt()
    before = torch.zeros(count) if layer.bias is None else layer.bias.detach()
    layer.bias = nn.Parameter(bias + (before - norm.running_mean) * factor, requires_grad=False)
    model.set_submodule(name, nn.Identity())
    signs = torch.where(factor < 0, -1, 1).to(torch.int8)
    return integers * over_channels(signs, integers, axis), scale * factor.abs()


def _wide_enough(integers: Tensor, scale: Tensor, axis: int, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Integers and scales of the weight, coarser where needed so that the integer bias fits into 32 bits.

    `bias` [C] is in units of the input's scale. Only a channel of nearly zero weights needs a coarser scale, and its
    weights lose less than 2^-23 of the bias. A bias that is left in float would be quantized by onnxruntime, and would
    overflow.
    """
    wider = torch.maximum(scale, bias.abs() / BIAS_LIMIT)
    return (integers * over_channels(scale / wider, integers, axis)).round().to(torch.int8), wider


def _quantize_bias(layer: Any, scale: Tensor) -> None:
    """Replace the bias by 32-bit integers with the products' scale [C], as an integer convolution adds it."""
    integers = (layer.bias.detach().double() / scale.clamp_min(SMALLEST).double()).round()
    _replace(layer, "bias", Integers(integers.to(torch.int32), scale, 0))


def _replace(module: nn.Module, name: str, constant: Integers) -> None:
    """Replace a parameter by a constant, and free its values."""
    setattr(module, name, nn.Parameter(torch.empty(0), requires_grad=False))
    parametrize.register_parametrization(module, name, constant, unsafe=True)
