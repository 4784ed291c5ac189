"""What pruning would touch, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from makeweight.layers import layers, leaf_weight

if TYPE_CHECKING:
    from torch import nn

    from makeweight import Trainer

    from .plugin import Prune


def shown(trainer: Trainer, stages: Sequence[Prune]) -> str:
    """A line on each stage, or the only one; raises UsageError for what a stage cannot have."""
    lines = [of_stage(trainer.model, each) for each in stages]
    if len(lines) == 1:
        return lines[0]
    return "".join(f"\n  stage {number}: {line}" for number, line in enumerate(lines, 1))


def of_stage(model: nn.Module, prune: Prune) -> str:
    """How many weights of which layers, what is asked of each, and how."""
    criterion = prune.criterion(model)
    if not any(criterion.targets.values()):
        return "prunes nothing"
    modules = layers(model)
    weights = sum(leaf_weight(modules[name]).numel() for name in criterion.targets)
    rounds = f" in {prune.rounds or 5} rounds" if prune.schedule == "iterative" else ""
    scope = f", by {prune.scope}" if criterion.word == "sparsity" else ""
    how = f"({prune.schedule}{rounds}{scope}{', with surgery' if prune.surgery else ''})"
    left_out = f"; {criterion.left_out}" if criterion.left_out else ""
    return (
        f"{weights:,} weights of {len(criterion.targets)} layers, {criterion.word} {criterion.shown()} {how}{left_out}"
    )
