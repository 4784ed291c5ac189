"""The options of distillation, and the values derived from them without a model."""

from __future__ import annotations

from dataclasses import dataclass

from makeweight.plugin import UsageError, require

MOST = 1 << 10
"""largest exit number accepted while the number of shallow classifiers is unknown"""


@dataclass(eq=False)
class DistillationOptions:
    """Learn from teachers. Without a teacher, the network's deepest classifier teaches shallow classifiers."""

    teacher: str | list[str] | None = None
    """the teacher: an exported model, `initial` (the network at the start of the stage), torchvision:NAME or
    package.module:function; several form an ensemble; default: self-distillation"""
    teacher_model: str | None = None
    """architecture of the teachers' files, named as for --model; default: the student's"""
    temperature: float = 3.0
    """temperature that divides the logits"""
    alpha: float | None = None
    """weight of the distillation loss; the labels' loss has weight 1 - alpha; default: 0.3, or 0.9 with a teacher"""
    feature_weight: float = 0.03
    """weight λ of the distance between shallow and deepest features (self-distillation)"""
    attention: float = 0.0
    """weight β of attention transfer from a teacher; the paper uses 1000"""
    hints: float = 0.0
    """weight of the hint loss: the distance between a teacher's features and the student's adapted features"""
    sections: list[str] | None = None
    """globs of the modules that end a section: there shallow classifiers read, or features are compared; default:
    found automatically"""
    teacher_sections: list[str] | None = None
    """globs of the teacher's modules to compare with those of `sections`; default: found automatically"""
    exits: str | int | list[int] | None = None
    """shallow classifiers to export, or to measure with `trainer evaluate`: all, or numbers counted from the input
    such as 1,2"""
    confidence: float | list[float] | None = None
    """`trainer evaluate`: an example leaves at the first exit whose largest probability reaches this threshold;
    default: 0.9"""
    weight: float = 1.0
    """factor on all distillation losses; 0 turns distillation off for a stage"""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", f"{self.temperature:g}", "a number above 0")
        require(self.alpha is None or 0 <= self.alpha <= 1, "alpha", self.alpha, "0 <= alpha <= 1")
        for option in ("feature_weight", "attention", "hints"):
            require(getattr(self, option) >= 0, option, f"{getattr(self, option):g}", "0 or more")
        require(0 <= self.weight <= 1, "weight", f"{self.weight:g}", "0 <= weight <= 1")
        require(all(0 < each <= 1 for each in self.thresholds), "confidence", self.confidence, "0 < confidence <= 1")
        if not self.teachers:
            for option in ("teacher_model", "teacher_sections"):
                require(getattr(self, option) is None, option, getattr(self, option), "a teacher: set kd.teacher")
        self.kept_exits(MOST)

    @property
    def teachers(self) -> list[str]:
        """The teachers' names without duplicates; empty for self-distillation."""
        given = self.teacher.split(",") if isinstance(self.teacher, str) else self.teacher or []
        return list(dict.fromkeys(name.strip() for name in given if name.strip()))

    @property
    def kd_weight(self) -> float:
        """α, the weight of the distillation loss: `alpha` or its default."""
        return (0.9 if self.teachers else 0.3) if self.alpha is None else self.alpha

    @property
    def thresholds(self) -> list[float]:
        """The confidence thresholds that `trainer evaluate` measures."""
        given = 0.9 if self.confidence is None else self.confidence
        return list(given) if isinstance(given, list) else [given]

    def kept_exits(self, count: int) -> list[int]:
        """The indices (from 0) of the shallow classifiers to export, of `count` in total.

        Raises UsageError for a number outside 1 to `count`.
        """
        if self.exits is None:
            return []
        if self.exits == "all":
            return list(range(count))
        given = self.exits if isinstance(self.exits, list) else str(self.exits).split(",")
        numbers = [int(each) if str(each).strip().isdecimal() else 0 for each in given]
        if not numbers or not all(1 <= number <= count for number in numbers):
            limits = "from 1" if count == MOST else f"from 1 to {count}, the number of shallow classifiers"
            raise UsageError(f"exits {self.exits}: expected all, or exit numbers {limits}, such as 1,2")
        return sorted({number - 1 for number in numbers})
