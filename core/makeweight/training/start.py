"""Where a stage begins: what the stages before it left, or the checkpoint that it goes on from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..models.records import Record


@dataclass
class Start:
    """Counters of the run, and what outlives a stage. The network itself is given to the trainer, already built."""

    stage: int = 0
    step: int = 0
    epochs_begun: int = 0
    original: nn.Module | None = None
    """the network that was given to the run, on the CPU"""
    checked: bool = False
    """whether `on_check` has been asked for all stages"""
    states: dict[str, Any] = field(default_factory=dict)
    """of the plugins, by name"""
    masks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    auxiliary: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    weights: dict[str, Tensor] | None = None
    """of the plain network; those of the original unless given"""
    saved: dict[str, Any] | None = None
    """the parts of the checkpoint that is resumed"""
