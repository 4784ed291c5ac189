"""What outlives a stage: learned steps of weights and ranges of activations, each with the bits that it is for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Memory:
    """What is known of tensors, for one kind of ranges: `moving`, `minmax`, `percentile` or `learned`."""

    kind: str
    on: bool = False
    """whether quantization had begun"""
    steps: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    """by layer: its bits, and the learned step of each channel of its weight, [C]"""
    ranges: dict[tuple[str, str], tuple[int, Tensor]] = field(default_factory=dict)
    """by a tensor's module and name: its bits, and -lowest, highest, step and zero point, [4]"""

    def write(self) -> dict[str, Any]:
        """As JSON values and tensors."""
        weights = [[layer, *known] for layer, known in self.steps.items()]
        activations = [[*home, *known] for home, known in self.ranges.items()]
        return {"on": self.on, "ranges": self.kind, "weights": weights, "activations": activations}

    @classmethod
    def read(cls, state: Any, kind: str) -> Memory:
        """Undo `write`; of ranges of another kind nothing is known. Raises ValueError for what `write` cannot give."""
        if not (isinstance(state["on"], bool) and isinstance(state["ranges"], str)):
            raise ValueError("qat: its state is not as it was written")
        memory = cls(kind, state["on"])
        for layer, bits, step in state["weights"]:
            if not (isinstance(layer, str) and _is_bits(bits) and _is_finite(step) and bool((step > 0).all())):
                raise ValueError(f"qat: the learned steps of {layer!r} are not as they were written")
            memory.steps[layer] = bits, step
        for path, name, bits, values in state["activations"]:
            if not (isinstance(path, str) and isinstance(name, str) and _is_bits(bits) and _is_range(values, bits)):
                raise ValueError(f"qat: the range of activations {name!r} is not as it was written")
            memory.ranges[path, name] = bits, values
        return memory if state["ranges"] == kind else cls(kind, memory.on)


def _is_bits(bits: Any) -> bool:
    return type(bits) is int and 2 <= bits <= 8


def _is_finite(values: Any) -> bool:
    """Whether these are values of float32, [n], with room for products within its range."""
    import torch

    is_vector = isinstance(values, torch.Tensor) and values.dtype == torch.float32 and values.ndim == 1
    return is_vector and bool((values.abs() < 1e30).all())


def _is_range(values: Any, bits: int) -> bool:
    if not (_is_finite(values) and len(values) == 4):
        return False
    step, zero_point = values[2:].tolist()
    return bool(step > 0 and 0 <= zero_point < 2**bits and zero_point == int(zero_point))
