"""Which options go together, and which values they may have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from makeweight import UsageError

if TYPE_CHECKING:
    from .plugin import Prune


def check_options(prune: Prune) -> None:
    """Raise UsageError for options that are out of range or that contradict each other."""
    for layer, value in _table(prune.sparsity):
        if not 0 <= value < 1:
            raise UsageError(f"sparsity {layer}{value:g}: expected 0 <= sparsity < 1")
    for layer, value in _table(prune.quality):
        if not 0 <= value < 1000:
            raise UsageError(f"quality {layer}{value:g}: expected a number of standard deviations, 0 or more")
    asked = [name for name in ("sparsity", "quality", "pattern") if getattr(prune, name) is not None]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} and {asked[1]} are both given: ask for one of them, and set the other to null")
    if prune.pattern is not None:
        _check_pattern(prune)
    if prune.scope == "global" and (asked not in ([], ["sparsity"]) or isinstance(prune.sparsity, dict)):
        raise UsageError(
            f"scope global: expected one number for sparsity, not the {_spoken(prune, (asked or ['sparsity'])[0])}"
        )
    if prune.sensitivity is not None and (
        asked not in ([], ["sparsity"]) or isinstance(prune.sparsity, dict) or prune.scope == "global"
    ):
        raise UsageError("sensitivity: expected one number for sparsity, and scope layer: that number is shared out")
    _check_times(prune)


def _check_pattern(prune: Prune) -> None:
    from .pattern import parsed

    for _, each in _table(prune.pattern):
        parsed(each)


def _check_times(prune: Prune) -> None:
    if prune.begin < 0:
        raise UsageError(f"begin {prune.begin:g}: expected an epoch, 0 or more")
    if prune.end is not None and prune.end < prune.begin:
        raise UsageError(f"end {prune.end:g}: expected an epoch not before begin {prune.begin:g}")
    if prune.every is not None and prune.every < 1:
        raise UsageError(f"every {prune.every}: expected at least 1 step")
    if prune.rounds is not None and prune.rounds < 1:
        raise UsageError(f"rounds {prune.rounds}: expected at least 1")
    if prune.rounds is not None and prune.schedule != "iterative":
        raise UsageError(f"rounds {prune.rounds}: expected with schedule iterative, which is {prune.schedule}")


def check_stage(prune: Prune, epochs: int) -> None:
    """Raise UsageError for a begin or an end that a stage of so many epochs does not reach."""
    if prune.begin >= epochs:
        raise UsageError(f"prune.begin {prune.begin:g}: expected less than the {epochs} epochs of the stage")
    if prune.end is not None and prune.end > epochs:
        raise UsageError(f"prune.end {prune.end:g}: expected at most the {epochs} epochs of the stage")


def _table(given: Any) -> list[tuple[str, Any]]:
    """(what is said before the value, value) of an option that is a value, a table by layer, or not given."""
    if given is None:
        return []
    return [(f"{layer} ", each) for layer, each in given.items()] if isinstance(given, dict) else [("", given)]


def _spoken(prune: Prune, option: str) -> str:
    given = getattr(prune, option)
    return f"table {given}" if isinstance(given, dict) else f"{option} {given}"
