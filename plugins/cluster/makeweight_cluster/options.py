"""The options of trained quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from makeweight import UsageError


@dataclass(eq=False)
class ClusterOptions:
    """Which layers share how many values, from when on, and how the values are trained."""

    values: int | dict[str, int] = 32
    """distinct values of a layer's weights, zero apart, or a table by layer glob: '{"conv*": 64, "fc1": 12}'; 0: any"""
    biases: int | dict[str, int] = 0
    """distinct values of a layer's biases, or a table by layer glob; 0: any"""
    layers: str = "*"
    """glob of the layers, where values or biases is one number"""
    initialisation: Literal["linear", "random", "density"] = "linear"
    """where k-means begins: evenly from the smallest to the largest weight, at random weights, evenly over the ranks"""
    begin: float | None = None
    """epoch of the stage at which the clusters are made; half of the stage unless given"""
    reassign_every: int = 0
    """steps between two assignments of the weights to the nearest value; 0: clusters stay as they are made"""
    scale: Literal["mean", "sum"] = "mean"
    """a value moves by the mean, or as in the paper by the sum, of what the optimizer would move its members"""

    def __post_init__(self) -> None:
        for option in ("values", "biases"):
            given = getattr(self, option)
            for layer, count in (given if isinstance(given, dict) else {"": given}).items():
                if count < 0:
                    raise UsageError(
                        f"{option} {f'{layer} ' if layer else ''}{count}: expected 1 or more, or 0 for any"
                    )
        if self.begin is not None and self.begin < 0:
            raise UsageError(f"begin {self.begin:g}: expected an epoch, 0 or more")
        if self.reassign_every < 0:
            raise UsageError(f"reassign_every {self.reassign_every}: expected 1 step or more, or 0 for never")

    def check_stage(self, epochs: int) -> None:
        """Raise UsageError for a begin that a stage of so many epochs does not reach."""
        if self.begin is not None and self.begin >= epochs:
            raise UsageError(
                f"cluster.begin {self.begin:g}: expected less than the {epochs} epochs of the stage; "
                "cluster.values 0 leaves a stage out"
            )
