"""The starting state of a stage, from earlier stages or from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..models.records import Record


@dataclass
class Start:
    """Counters of the run and state that outlives a stage. The trainer receives the built network separately."""

    stage: int = 0
    step: int = 0
    epochs_begun: int = 0
    original: nn.Module | None = None
    """original network of the run, on the CPU"""
    checked: bool = False
    """whether `on_check` has been called for all stages"""
    states: dict[str, Any] = field(default_factory=dict)
    """states of plugins by name"""
    masks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    auxiliary: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    weights: dict[str, Tensor] | None = None
    """weights of the plain network; None for those of the original"""
    saved: dict[str, Any] | None = None
    """parts of the checkpoint to resume"""
