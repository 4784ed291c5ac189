"""The options of quantization-aware training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from makeweight.plugin import require

Bits = int | dict[str, int]


@dataclass(eq=False)
class QuantizationOptions:
    """Which layers are quantized, to how many bits, and when."""

    weights: Bits = 8
    """bits of the weights, 2 to 8, or a table by layer glob such as '{"*": 4, "fc3": 8}'; 0: not quantized"""
    activations: Bits = 8
    """bits of the layers' inputs, 2 to 8, or a table by layer glob; 0: not quantized"""
    skip: list[str] = field(default_factory=list)
    """layers that are not quantized: globs, and the words first and last"""
    ranges: Literal["moving", "minmax", "percentile", "learned"] = "moving"
    """ranges of activations: a moving average of minimum and maximum, the running minimum and maximum, percentiles, or
    learned step sizes (LSQ). Weights: minimum and maximum, percentiles, or learned step sizes"""
    percentile: float = 99.99
    """with ranges percentile: percentage of the values below the upper end, and above the lower end, of the range"""
    begin: float = 0.0
    """epoch of the stage at which quantization begins"""
    freeze: float | None = None
    """epoch of the stage after which the ranges of activations stay fixed; default: never"""

    def __post_init__(self) -> None:
        for option in ("weights", "activations"):
            for layer, bits in as_table(getattr(self, option)).items():
                is_valid = bits == 0 or 2 <= bits <= 8
                require(is_valid, f"{option} {layer}".strip(), bits, "2 to 8 bits, or 0 for none")
        require(50 < self.percentile <= 100, "percentile", f"{self.percentile:g}", "50 < percentile <= 100")
        require(self.begin >= 0, "begin", f"{self.begin:g}", "an epoch, 0 or more")
        if self.freeze is not None:
            expected = f"an epoch not before begin {self.begin:g}"
            require(self.freeze >= self.begin, "freeze", f"{self.freeze:g}", expected)

    @property
    def is_off(self) -> bool:
        """Whether this stage quantizes nothing."""
        return not any(bits for option in (self.weights, self.activations) for bits in as_table(option).values())


def as_table(option: Bits) -> dict[str, int]:
    """The bits by layer glob; one number for all layers has the key ''."""
    return option if isinstance(option, dict) else {"": option}
