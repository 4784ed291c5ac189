"""Write a quantized model into an export, and read it back: integers, their scales and a JSON record.

`fc1.weight` holds int8 integers, and `fc1.weight_scale` the scale of each output channel, float32 [C]. The record is
`{"weights": {layer: [bits, axis]}, "activations": [[module, tensor, scale, zero point, bits], ...]}`.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from makeweight.plugin import Artifact, MakeweightError, weight_name

from .activations import UNSEEN, FixedQuantizer, Ranges
from .forwards import attach, detach
from .tracing import Site
from .weights import QuantizedWeight, from_integers, to_integers, weight_limit


def write_weight(artifact: Artifact, layer: str, scale: Tensor, quantizer: QuantizedWeight) -> None:
    """Replace a layer's weight by integers and scales [C].

    Raises MakeweightError for scales that are not positive and for values off the quantizer's grid, unless the export
    is a trial.
    """
    name, scale = weight_name(layer), scale.cpu()
    values = artifact.tensors[name]
    integers = to_integers(values, scale, quantizer.axis, quantizer.bits)
    if not artifact.trial:
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise MakeweightError(
                f"qat: the scales of {name} are not all above 0: training diverged, lower the learning rate"
            )
        if not torch.equal(from_integers(integers, scale, quantizer.axis), values + 0.0):  # no -0.0
            raise MakeweightError(
                f"qat: {name} is not on its grid of {quantizer.bits} bits: it was changed after quantization"
            )
    artifact.tensors[name], artifact.tensors[f"{name}_scale"] = integers, scale.clone()
    artifact.sizes[name] = integers.numel() + 4 * scale.numel()


def read_weight(tensors: MutableMapping[str, Tensor], layer: str, bits: Any, axis: Any) -> None:
    """Undo `write_weight` in `tensors`. The file is untrusted: raises MakeweightError for values it cannot write."""
    name = weight_name(layer)
    integers, scale = tensors[name], tensors.pop(f"{name}_scale")
    if not (2 <= bits <= 8 and axis in (0, 1)) or integers.dtype != torch.int8 or integers.ndim <= axis:
        raise MakeweightError(f"qat: {name!r} is damaged: expected int8 integers of 2 to 8 bits, axis 0 or 1")
    if scale.dtype != torch.float32 or scale.shape != integers.shape[axis : axis + 1]:
        raise MakeweightError(f"qat: the scales of {name!r} are damaged: expected float32, one per channel")
    limit = weight_limit(bits)
    if integers.numel() and (int(integers.min()) < -limit or int(integers.max()) > limit):
        raise MakeweightError(f"qat: {name!r} is damaged: it has integers of more than {bits} bits")
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise MakeweightError(f"qat: the scales of {name!r} are damaged: expected finite numbers above 0")
    tensors[name] = from_integers(integers, scale, axis)


def write_activations(ranges: Ranges, trial: bool) -> list[list[Any]]:
    """The quantizers of activations, as JSON values.

    Raises MakeweightError for a tensor that was never observed, unless the export is a trial.
    """
    written, known = [], ranges.known()
    for (path, name), bits in ranges.bits.items():
        if (path, name) not in known and not trial:
            raise MakeweightError(f"qat: activations {name!r} of module {path!r} were never observed: train longer")
        *_, scale, zero_point = known.get((path, name), (bits, UNSEEN))[1].tolist()
        digits = float(str(np.float32(scale)))  # the shortest decimal that gives the same float32
        written.append([path, name, digits, int(zero_point), bits])
    return written


def read_activations(record: Any) -> dict[Site, FixedQuantizer]:
    """Undo `write_activations`. The file is untrusted: raises MakeweightError for values it cannot write."""
    quantizers = {}
    for path, name, scale, zero_point, bits in record:
        whole = type(zero_point) is int and type(bits) is int and 2 <= bits <= 8 and 0 <= zero_point < 2**bits
        if not (isinstance(path, str) and isinstance(name, str) and isinstance(scale, float) and whole):
            raise MakeweightError("qat: a quantizer of activations is damaged: unexpected types, bits or zero point")
        if not (math.isfinite(scale) and 1e-37 < scale < 1e37):
            raise MakeweightError(f"qat: the scale of activations {name!r} is {scale}: expected 1e-37 < scale < 1e37")
        quantizers[path, name] = FixedQuantizer(scale, zero_point, bits)
    return quantizers


def attach_record(model: nn.Module, record: Any) -> None:
    """Attach the quantizers of activations of a file to its loaded model.

    Raises MakeweightError where the model does not have a module or tensor of the record.
    """
    quantizers = read_activations(record)
    for path, _ in quantizers:
        try:
            model.get_submodule(path)
        except AttributeError as error:
            reason = "the file belongs to another model"
            raise MakeweightError(f"qat: the model has no module {path!r}: {reason}") from error
    detach(model)
    attach(model, quantizers)
