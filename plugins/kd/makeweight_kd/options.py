"""The options of distillation, and what follows from them alone."""

from __future__ import annotations

from dataclasses import dataclass

from makeweight import UsageError
from makeweight.plugin import require

MOST = 1 << 10
"""exits at most, where their number is not known"""


@dataclass(eq=False)
class DistillationOptions:
    """Learn from teachers; with none named, let the deepest classifier teach shallow ones (be your own teacher)."""

    teacher: str | list[str] | None = None
    """who to learn from: an exported model, `initial` (the network as the stage began), torchvision:NAME,
    package.module:function; several are an ensemble; unless given, the network is its own teacher"""
    teacher_model: str | None = None
    """the architecture of the teachers' files, as --model names it; the student's own unless given"""
    temperature: float = 3.0
    """by which logits are divided before they are compared"""
    alpha: float | None = None
    """weight of the distillation loss against that of the labels; 0.3 unless given, 0.9 with a teacher"""
    feature_weight: float = 0.03
    """weight of the distance between shallow and deepest features, λ"""
    attention: float = 0.0
    """weight of attention transfer from a teacher, β; the paper's is 1000"""
    hints: float = 0.0
    """weight of the distance between a teacher's outputs and the student's behind an adapter"""
    sections: list[str] | None = None
    """modules after which shallow classifiers are put, or attention is compared, as globs; found unless given"""
    teacher_sections: list[str] | None = None
    """the teacher's modules that they are compared with, as globs; found unless given"""
    exits: str | int | list[int] | None = None
    """shallow classifiers that are kept in the export, or that `trainer evaluate` shows: all, or 1,2, counted from the
    input"""
    confidence: float | list[float] | None = None
    """largest probability at which `trainer evaluate` lets an example take an exit; 0.9 unless given"""
    weight: float = 1.0
    """factor on all that distillation adds; 0 turns it off, for a stage"""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", f"{self.temperature:g}", "a number above 0")
        require(self.alpha is None or 0 <= self.alpha <= 1, "alpha", self.alpha, "0 <= alpha <= 1")
        for option in ("feature_weight", "attention", "hints"):
            require(getattr(self, option) >= 0, option, f"{getattr(self, option):g}", "0 or more")
        require(0 <= self.weight <= 1, "weight", f"{self.weight:g}", "0 <= weight <= 1")
        require(all(0 < each <= 1 for each in self.thresholds), "confidence", self.confidence, "0 < confidence <= 1")
        if not self.teachers:
            teacher = "the teacher's file too, --kd.teacher FILE"
            for option in ("teacher_model", "teacher_sections"):
                require(getattr(self, option) is None, option, getattr(self, option), teacher)
        self.kept_exits(MOST)

    @property
    def teachers(self) -> list[str]:
        """The teachers' names, each once; none where the network is its own."""
        given = self.teacher.split(",") if isinstance(self.teacher, str) else self.teacher or []
        return list(dict.fromkeys(name.strip() for name in given if name.strip()))

    @property
    def share(self) -> float:
        """α, the weight of the distillation loss."""
        return (0.9 if self.teachers else 0.3) if self.alpha is None else self.alpha

    @property
    def thresholds(self) -> list[float]:
        """The confidences that `trainer evaluate` measures."""
        given = 0.9 if self.confidence is None else self.confidence
        return list(given) if isinstance(given, list) else [given]

    def kept_exits(self, count: int) -> list[int]:
        """The indices, from 0, of the shallow classifiers to keep of `count`. Raises UsageError for one it has not."""
        if self.exits is None:
            return []
        if self.exits == "all":
            return list(range(count))
        given = self.exits if isinstance(self.exits, list) else str(self.exits).split(",")
        numbers = [int(each) if str(each).strip().isdecimal() else 0 for each in given]
        if not numbers or not all(1 <= number <= count for number in numbers):
            there = "numbers from 1" if count == MOST else f"numbers of the {count} shallow classifiers, from 1"
            raise UsageError(f"exits {self.exits}: expected all, or {there}: 1,2")
        return sorted({number - 1 for number in numbers})
