"""Options of weight clustering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from makeweight import UsageError


@dataclass(eq=False)
class ClusterOptions:
    """Which layers are clustered, to how many values, when, and how the values are trained."""

    values: int | dict[str, int] = 32
    """distinct nonzero weights in a layer, or a table by layer glob: '{"conv*": 64, "fc1": 12}'; 0: no limit"""
    biases: int | dict[str, int] = 0
    """distinct nonzero biases in a layer, or a table by layer glob; 0: no limit"""
    layers: str = "*"
    """glob of the layers to cluster, used where values or biases is one number; * is every Linear and Conv layer"""
    initialisation: Literal["linear", "random", "density"] = "linear"
    """initial centroids: linear from the smallest to the largest weight, at random weights, or at equal density"""
    begin: float | None = None
    """epoch of the stage at which the weights are clustered; default half of the stage"""
    reassign_every: int = 0
    """steps between reassignments of the weights to the nearest value; 0: assignments are fixed"""
    scale: Literal["mean", "sum"] = "mean"
    """update of a shared value: the mean, or as in the paper the sum, of the optimizer's updates of its members"""

    def __post_init__(self) -> None:
        for option in ("values", "biases"):
            given = getattr(self, option)
            for layer, count in (given if isinstance(given, dict) else {"": given}).items():
                if count < 0:
                    raise UsageError(
                        f"{option} {f'{layer} ' if layer else ''}{count}: expected 1 or more, or 0 for no limit"
                    )
        if self.begin is not None and self.begin < 0:
            raise UsageError(f"begin {self.begin:g}: expected an epoch, 0 or more")
        if self.reassign_every < 0:
            raise UsageError(f"reassign_every {self.reassign_every}: expected 1 step or more, or 0 for never")

    def check_stage(self, epochs: int) -> None:
        """Raise UsageError if begin lies outside a stage of `epochs` epochs."""
        if self.begin is not None and self.begin >= epochs:
            raise UsageError(
                f"cluster.begin {self.begin:g}: expected less than the {epochs} epochs of the stage; "
                "cluster.values 0 skips a stage"
            )
