"""Options of pruning, and checks that they fit together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from makeweight import UsageError


@dataclass(eq=False)
class PruneOptions:
    """Which layers are pruned, to which target, and when."""

    sparsity: float | dict[str, float] | None = None
    """fraction of the weights set to zero, or a table by layer glob: '{"conv*": 0.4, "fc1": 0.92}'; default 0.9, unless
    quality or pattern is given"""
    quality: float | dict[str, float] | None = None
    """instead of sparsity: prune weights below this many standard deviations of the layer; or a table by layer glob"""
    pattern: str | dict[str, str] | None = None
    """instead of sparsity: N:M (as 2:4) keeps at most N of every M weights along the input channels; or a table"""
    layers: str = "*"
    """glob of the layers to prune; ignored where the target is a table; * is every Linear and Conv layer"""
    scope: Literal["layer", "global"] = "layer"
    """layer: prune every layer to its own sparsity; global: rank the weights of all layers together"""
    sensitivity: str | None = None
    """JSON file of 'trainer sensitivity': distribute the sparsity over layers, sensitive layers get less"""
    schedule: Literal["cubic", "linear", "one-shot", "iterative"] = "cubic"
    """how the target rises from begin to end; one-shot prunes once at begin, iterative prunes and retrains in rounds"""
    rounds: int | None = None
    """pruning rounds of the iterative schedule, evenly spaced from begin to end; default 5"""
    surgery: bool = False
    """dynamic network surgery: keep training pruned weights, restore those that grow, until end"""
    idle_first: bool = False
    """first prune weights whose input is constant over a batch: the bias can take over their contribution"""
    begin: float = 0.0
    """epoch of the stage at which pruning starts"""
    end: float | None = None
    """epoch of the stage at which the target is reached; default two thirds of the stage"""
    every: int | None = None
    """steps between mask updates, until end; masks are also updated after each epoch; default 100, 10 with surgery"""

    def __post_init__(self) -> None:
        for layer, value in _table(self.sparsity):
            if not 0 <= value < 1:
                raise UsageError(f"sparsity {layer}{value:g}: expected 0 <= sparsity < 1")
        for layer, value in _table(self.quality):
            if not 0 <= value < 1000:
                raise UsageError(f"quality {layer}{value:g}: expected 0 <= quality < 1000 standard deviations")
        for _, each in _table(self.pattern):
            parsed(each)
        self._check_together()
        self._check_times()

    def _check_together(self) -> None:
        given = [name for name in ("sparsity", "quality", "pattern") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} are both given: expected one of them, set the other to null")
        one_number = given in ([], ["sparsity"]) and not isinstance(self.sparsity, dict)
        if self.scope == "global" and not one_number:
            option = (given or ["sparsity"])[0]
            value = getattr(self, option)
            shown = f"table {value}" if isinstance(value, dict) else f"{option} {value}"
            raise UsageError(f"scope global: expected one number for sparsity, got {shown}")
        if self.sensitivity is not None and (not one_number or self.scope == "global"):
            raise UsageError(
                "sensitivity: expected one number for sparsity, with scope layer: it is distributed over the layers"
            )

    def _check_times(self) -> None:
        if self.begin < 0:
            raise UsageError(f"begin {self.begin:g}: expected an epoch, 0 or more")
        if self.end is not None and self.end < self.begin:
            raise UsageError(f"end {self.end:g}: expected an epoch at or after begin {self.begin:g}")
        if self.every is not None and self.every < 1:
            raise UsageError(f"every {self.every}: expected at least 1 step")
        if self.rounds is not None and self.rounds < 1:
            raise UsageError(f"rounds {self.rounds}: expected at least 1")
        if self.rounds is not None and self.schedule != "iterative":
            raise UsageError(f"rounds {self.rounds}: expected only with schedule iterative, not {self.schedule}")

    def check_stage(self, epochs: int) -> None:
        """Raise UsageError if begin or end lies outside a stage of `epochs` epochs."""
        if self.begin >= epochs:
            raise UsageError(f"prune.begin {self.begin:g}: expected less than the {epochs} epochs of the stage")
        if self.end is not None and self.end > epochs:
            raise UsageError(f"prune.end {self.end:g}: expected at most the {epochs} epochs of the stage")

    @property
    def steps_between(self) -> int:
        """Optimizer steps between mask updates."""
        return self.every or (10 if self.surgery else 100)

    def passed(self, progress: float, epochs: int) -> float:
        """Fraction of the schedule completed after `progress` epochs of the stage; negative before `begin`."""
        end = max(self.begin, epochs * 2 / 3) if self.end is None else self.end
        passed = progress - self.begin
        return passed / (end - self.begin) if end > self.begin or passed < 0 else 1.0


def parsed(pattern: str) -> tuple[int, int]:
    """Parse 'N:M'. Raises UsageError unless 1 <= N <= M <= 9999."""
    found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"pattern {pattern}: expected N:M with 1 <= N <= M <= 9999, for example 2:4")
    return int(found[1]), int(found[2])


def _table(given: Any) -> list[tuple[str, Any]]:
    """(prefix for messages, value) pairs of an option: a single value, a table by layer glob, or None."""
    if given is None:
        return []
    return [(f"{layer} ", each) for layer, each in given.items()] if isinstance(given, dict) else [("", given)]
