"""The state that passes from stage to stage: learned step sizes of weights, and ranges of activations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Memory:
    """Step sizes and ranges of one `kind`: `moving`, `minmax`, `percentile` or `learned`."""

    kind: str
    on: bool = False
    """whether quantization was on"""
    steps: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    """by layer: the bits, and the learned step size of each channel of its weight, [C]"""
    ranges: dict[tuple[str, str], tuple[int, Tensor]] = field(default_factory=dict)
    """by site (tracing.py): the bits, and the values negated minimum, maximum, step size, zero point, [4]"""

    def write(self) -> dict[str, Any]:
        """The state as JSON values and tensors."""
        weights = [[layer, *known] for layer, known in self.steps.items()]
        activations = [[*site, *known] for site, known in self.ranges.items()]
        return {"on": self.on, "ranges": self.kind, "weights": weights, "activations": activations}

    @classmethod
    def read(cls, state: Any, kind: str) -> Memory:
        """Undo `write`. Step sizes and ranges of another kind than `kind` are dropped.

        The state is untrusted: raises ValueError for values that `write` cannot give.
        """
        if not (isinstance(state["on"], bool) and isinstance(state["ranges"], str)):
            raise ValueError("qat: the state is damaged: expected on (true or false) and ranges (a name)")
        memory = cls(kind, state["on"])
        for layer, bits, step in state["weights"]:
            if not (isinstance(layer, str) and _is_bits(bits) and _is_finite(step) and bool((step > 0).all())):
                raise ValueError(f"qat: the learned step sizes of {layer!r} are damaged: expected numbers above 0")
            memory.steps[layer] = bits, step
        for path, name, bits, values in state["activations"]:
            if not (isinstance(path, str) and isinstance(name, str) and _is_bits(bits) and _is_range(values, bits)):
                raise ValueError(f"qat: the range of activations {name!r} is damaged: expected bits and 4 numbers")
            memory.ranges[path, name] = bits, values
        return memory if state["ranges"] == kind else cls(kind, memory.on)


def _is_bits(bits: Any) -> bool:
    return type(bits) is int and 2 <= bits <= 8


def _is_finite(values: Any) -> bool:
    """Whether this is a float32 vector [n] of magnitudes below 1e30, whose products stay finite."""
    import torch

    is_vector = isinstance(values, torch.Tensor) and values.dtype == torch.float32 and values.ndim == 1
    return is_vector and bool((values.abs() < 1e30).all())


def _is_range(values: Any, bits: int) -> bool:
    if not (_is_finite(values) and len(values) == 4):
        return False
    step, zero_point = values[2:].tolist()
    return bool(step > 0 and 0 <= zero_point < 2**bits and zero_point == int(zero_point))
