"""What a file holds of a quantized model: integers, their scales, and a JSON record; and back.

`fc1.weight` becomes int8 integers and `fc1.weight_scale` the step of each output channel, [C] float32. The record is
`{"weights": {layer: [bits, axis]}, "activations": [[module, tensor, scale, zero point, bits], …]}`.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from makeweight import MakeweightError
from makeweight.layers import weight_name

from .activations import Fixed, Ranges
from .forwards import attach
from .plan import Home
from .weights import QuantizedWeight, from_integers, to_integers, weight_limit


def scale_name(layer: str) -> str:
    return f"{weight_name(layer)}_scale"


def write_weight(tensors: MutableMapping[str, Tensor], layer: str, scale: Tensor, quantizer: QuantizedWeight) -> int:
    """Put integers and scales in the place of a layer's weight, and return their bytes.

    Raises MakeweightError where a value is not on the grid that was asked for.
    """
    name, scale = weight_name(layer), scale.detach().cpu()
    values = tensors[name]
    integers = to_integers(values, scale, quantizer.axis)
    if not torch.equal(from_integers(integers, scale, quantizer.axis), values + 0.0):  # no -0.0
        raise MakeweightError(f"{name} is not on its grid of {quantizer.bits} bits: it was changed after quantization")
    if int(integers.abs().amax()) > weight_limit(quantizer.bits):
        raise MakeweightError(f"{name} has values beyond its grid of {quantizer.bits} bits")
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise MakeweightError(f"the steps of {name} are not all above 0: training went astray, lower the learning rate")
    tensors[name], tensors[scale_name(layer)] = integers, scale.clone()
    return integers.numel() + 4 * scale.numel()


def read_weight(tensors: MutableMapping[str, Tensor], layer: str, bits: Any, axis: Any) -> None:
    """Undo `write_weight`, trusting nothing."""
    name = weight_name(layer)
    integers, scale = tensors[name], tensors.pop(scale_name(layer))
    if not (2 <= bits <= 8 and axis in (0, 1)) or integers.dtype != torch.int8 or integers.ndim <= axis:
        raise MakeweightError(f"qat: {name!r} is not as it was written")
    if scale.dtype != torch.float32 or scale.shape != integers.shape[axis : axis + 1]:
        raise MakeweightError(f"qat: the scales of {name!r} do not fit it")
    limit = weight_limit(bits)
    if integers.numel() and (int(integers.min()) < -limit or int(integers.max()) > limit):
        raise MakeweightError(f"qat: {name!r} holds integers of more than {bits} bits")
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise MakeweightError(f"qat: the scales of {name!r} are not all above 0")
    tensors[name] = from_integers(integers, scale, axis)


def write_activations(homes: list[Home], ranges: Ranges) -> list[list[Any]]:
    """The quantizers of activations as JSON. Raises MakeweightError for one whose tensor was never seen."""
    scales, zero_points, seen, written = ranges.scales(), ranges.zero_point.tolist(), ranges.seen.tolist(), []
    for index, (path, name) in enumerate(homes):
        limit = ranges.limits[index]
        if limit and not seen[index]:
            raise MakeweightError(f"qat: no step saw the activations {name!r} of module {path!r}: train longer")
        if limit:
            scale = float(str(np.float32(scales[index])))  # the shortest digits that give the same float32
            written.append([path, name, scale, int(zero_points[index]), limit.bit_length()])
    return written


def read_activations(record: Any) -> dict[Home, Fixed]:
    """Undo `write_activations`, trusting nothing."""
    quantizers = {}
    for path, name, scale, zero_point, bits in record:
        whole = type(zero_point) is int and type(bits) is int and 2 <= bits <= 8 and 0 <= zero_point < 2**bits
        if not (isinstance(path, str) and isinstance(name, str) and isinstance(scale, float) and whole):
            raise MakeweightError("qat: a quantizer of activations is not as it was written")
        if not (math.isfinite(scale) and 1e-37 < scale < 1e37):
            raise MakeweightError(f"qat: the scale of activations {name!r} is {scale}")
        quantizers[path, name] = Fixed(scale, zero_point, bits)
    return quantizers


def attach_activations(model: nn.Module, record: Any) -> None:
    """Let a model that was read compute as the one that was trained."""
    quantizers = read_activations(record)
    for path, _ in quantizers:
        try:
            model.get_submodule(path)
        except AttributeError as error:
            raise MakeweightError(f"qat: the model has no module {path!r}: it is another model") from error
    try:
        attach(model, quantizers)
    except MakeweightError:
        raise
    except Exception as error:  # whatever tracing a forward may raise
        raise MakeweightError(f"qat: the model's activations cannot be quantized as in the file: {error}") from error
