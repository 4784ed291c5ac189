"""The options of pruning: what may be asked for, and which of it goes together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from makeweight import UsageError


@dataclass(eq=False)
class PruneOptions:
    """What is pruned, how much of it, and when."""

    sparsity: float | dict[str, float] | None = None
    """fraction of the weights that become zero, or a table by layer glob: '{"conv*": 0.4, "fc1": 0.92}'; 0.9 unless
    given, or unless quality or pattern is"""
    quality: float | dict[str, float] | None = None
    """instead: prune weights below this many standard deviations of their layer's; also a table by layer glob"""
    pattern: str | dict[str, str] | None = None
    """instead: N:M, at most N of every M weights along the input channels, as 2:4; also a table by layer glob"""
    layers: str = "*"
    """glob of the layers to prune, where what is asked for is no table"""
    scope: Literal["layer", "global"] = "layer"
    """layer: each layer to its sparsity; global: the smallest weights of all layers together"""
    sensitivity: str | None = None
    """what 'trainer sensitivity' wrote: the sparsity is shared out so that sensitive layers get less"""
    schedule: Literal["cubic", "linear", "one-shot", "iterative"] = "cubic"
    """how the sparsity rises from begin to end; one-shot prunes all at begin, iterative in rounds"""
    rounds: int | None = None
    """with schedule iterative: how often is pruned and retrained, evenly from begin to end; 5 unless given"""
    surgery: bool = False
    """let dropped weights go on being trained, and come back, at revisions until end, where they have grown"""
    idle_first: bool = False
    """drop first what reads an input that does not vary over a batch: the bias can add what such weights add"""
    begin: float = 0.0
    """epoch of the stage at which pruning begins"""
    end: float | None = None
    """epoch at which the sparsity is reached; two thirds of the stage unless given"""
    every: int | None = None
    """steps between two revisions of the masks until end, which come after each epoch too; 100 unless given, 10 with
    surgery"""

    def __post_init__(self) -> None:
        for layer, value in _table(self.sparsity):
            if not 0 <= value < 1:
                raise UsageError(f"sparsity {layer}{value:g}: expected 0 <= sparsity < 1")
        for layer, value in _table(self.quality):
            if not 0 <= value < 1000:
                raise UsageError(f"quality {layer}{value:g}: expected a number of standard deviations, 0 or more")
        for _, each in _table(self.pattern):
            parsed(each)
        self._check_together()
        self._check_times()

    def _check_together(self) -> None:
        asked = [name for name in ("sparsity", "quality", "pattern") if getattr(self, name) is not None]
        if len(asked) > 1:
            raise UsageError(
                f"{asked[0]} and {asked[1]} are both given: ask for one of them, and set the other to null"
            )
        one_number = asked in ([], ["sparsity"]) and not isinstance(self.sparsity, dict)
        if self.scope == "global" and not one_number:
            option = (asked or ["sparsity"])[0]
            given = getattr(self, option)
            said = f"table {given}" if isinstance(given, dict) else f"{option} {given}"
            raise UsageError(f"scope global: expected one number for sparsity, not the {said}")
        if self.sensitivity is not None and (not one_number or self.scope == "global"):
            raise UsageError(
                "sensitivity: expected one number for sparsity, and scope layer: that number is shared out"
            )

    def _check_times(self) -> None:
        if self.begin < 0:
            raise UsageError(f"begin {self.begin:g}: expected an epoch, 0 or more")
        if self.end is not None and self.end < self.begin:
            raise UsageError(f"end {self.end:g}: expected an epoch not before begin {self.begin:g}")
        if self.every is not None and self.every < 1:
            raise UsageError(f"every {self.every}: expected at least 1 step")
        if self.rounds is not None and self.rounds < 1:
            raise UsageError(f"rounds {self.rounds}: expected at least 1")
        if self.rounds is not None and self.schedule != "iterative":
            raise UsageError(f"rounds {self.rounds}: expected with schedule iterative, which is {self.schedule}")

    def check_stage(self, epochs: int) -> None:
        """Raise UsageError for a begin or an end that a stage of so many epochs does not reach."""
        if self.begin >= epochs:
            raise UsageError(f"prune.begin {self.begin:g}: expected less than the {epochs} epochs of the stage")
        if self.end is not None and self.end > epochs:
            raise UsageError(f"prune.end {self.end:g}: expected at most the {epochs} epochs of the stage")

    @property
    def steps_between(self) -> int:
        """Steps between two revisions of the masks."""
        return self.every or (10 if self.surgery else 100)

    def passed(self, progress: float, epochs: int) -> float:
        """The fraction of the schedule that has passed after `progress` epochs of a stage; below 0 before it begins."""
        end = max(self.begin, epochs * 2 / 3) if self.end is None else self.end
        passed = progress - self.begin
        return passed / (end - self.begin) if end > self.begin or passed < 0 else 1.0


def parsed(pattern: str) -> tuple[int, int]:
    """N and M of 'N:M'. Raises UsageError unless 1 <= N <= M."""
    found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"pattern {pattern}: expected N:M with 1 <= N <= M, as 2:4")
    return int(found[1]), int(found[2])


def _table(given: Any) -> list[tuple[str, Any]]:
    """(what is said before the value, value) of an option that is a value, a table by layer, or not given."""
    if given is None:
        return []
    return [(f"{layer} ", each) for layer, each in given.items()] if isinstance(given, dict) else [("", given)]
