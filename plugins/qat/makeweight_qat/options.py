"""The plugin's options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from makeweight.plugin import require

Bits = int | dict[str, int]


@dataclass(eq=False)
class QuantizationOptions:
    """What is quantized, to how many bits, and from when on."""

    weights: Bits = 8
    """bits of the weights, 2 to 8, or a table by layer glob: '{"*": 4, "fc3": 8}'; 0: as they are"""
    activations: Bits = 8
    """bits of what layers read, 2 to 8, or a table by layer glob; 0: as it is"""
    skip: list[str] = field(default_factory=list)
    """layers to leave alone: globs, and the words first and last"""
    ranges: Literal["moving", "minmax", "percentile", "learned"] = "moving"
    """of activations: a moving average of extremes, running extremes, percentiles, or learned steps (LSQ). Of weights:
    their extremes, percentiles, or learned steps"""
    percentile: float = 99.99
    """with ranges percentile: the share of values, in percent, within each end of the range"""
    begin: float = 0.0
    """epoch of the stage at which quantization begins"""
    freeze: float | None = None
    """epoch of the stage from which on the ranges of activations stay; never unless given"""

    def __post_init__(self) -> None:
        for option in ("weights", "activations"):
            for layer, bits in as_table(getattr(self, option)).items():
                whole = bits == 0 or 2 <= bits <= 8
                require(whole, f"{option} {layer}".strip(), bits, "2 to 8 bits, or 0 for none")
        require(50 < self.percentile <= 100, "percentile", f"{self.percentile:g}", "50 < percentile <= 100")
        require(self.begin >= 0, "begin", f"{self.begin:g}", "an epoch, 0 or more")
        if self.freeze is not None:
            expected = f"an epoch not before begin {self.begin:g}"
            require(self.freeze >= self.begin, "freeze", f"{self.freeze:g}", expected)

    @property
    def is_off(self) -> bool:
        """Whether no layer is quantized in this stage."""
        return not any(bits for asked in (self.weights, self.activations) for bits in as_table(asked).values())


def as_table(asked: Bits) -> dict[str, int]:
    return asked if isinstance(asked, dict) else {"": asked}
