"""The plugin: who teaches in which stage, and when."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from makeweight import UsageError, hookimpl
from makeweight.options import require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from makeweight import Artifact, Trainer

    from .own_teacher import OwnTeacher
    from .taught import Taught
    from .trace import Trace

FIXED = ("teacher_model", "sections", "teacher_sections", "exits")
"""options that decide what is built, before the first stage"""
MOST = 1 << 10
"""exits at most, where their number is not known"""


@dataclass(eq=False)
class Distillation:
    """Learn from teachers; with none named, let the deepest classifier teach shallow ones (be your own teacher)."""

    teacher: str | list[str] | None = None
    """who to learn from: an exported model, `initial` (the network as the stage began), torchvision:NAME,
    package.module:function; several are an ensemble; unless given, the network is its own teacher"""
    teacher_model: str | None = None
    """the architecture of the teachers' files, as --model names it; the student's own unless given"""
    temperature: float = 3.0
    """by which logits are divided before they are compared"""
    alpha: float | None = None
    """share of the teacher's word against the labels'; 0.3 unless given, 0.9 with a teacher"""
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
        self._own: OwnTeacher | None = None
        self._taught: Taught | None = None
        self._initial: dict[str, Tensor] | None = None  # of a checkpoint, until on_init

    @property
    def teachers(self) -> list[str]:
        """The teachers' names; none where the network is its own."""
        given = self.teacher.split(",") if isinstance(self.teacher, str) else self.teacher or []
        return [name.strip() for name in given if name.strip()]

    @property
    def share(self) -> float:
        """α, the teacher's share."""
        return (0.9 if self.teachers else 0.3) if self.alpha is None else self.alpha

    @property
    def thresholds(self) -> list[float]:
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

    @hookimpl
    def on_init(self, trainer: Trainer) -> str:
        from .taught import Taught
        from .teachers import trace_of

        stages = [plugin for _, plugin in trainer.staged(self)]
        for option in FIXED:
            for other in stages:
                if getattr(other, option) != getattr(self, option):
                    raise UsageError(f"kd.{option} {getattr(other, option)}: expected the same in every stage")
        alone = [stage for stage in stages if not stage.teachers]
        taught = [stage for stage in stages if stage.teachers]
        for stage in alone:
            for option in ("attention", "hints"):
                require(not getattr(stage, option), f"kd.{option}", getattr(stage, option), "a teacher, kd.teacher")
        trace = trace_of(trainer, trainer.model)
        said = []
        if alone and (not taught or any(stage.weight for stage in alone)):
            said.append(self._learn_from_itself(trainer, trace))
        elif self.exits is not None:
            raise UsageError(f"kd.exits {self.exits}: expected a stage without a teacher: exits are its classifiers")
        if taught:
            self._taught = Taught(self, trainer, trace, stages)
            self._taught.initial = self._initial
            names = dict.fromkeys(name for stage in taught for name in stage.teachers)
            first = taught[0]
            said.append(
                f"the teacher is {', '.join(names)}, temperature {first.temperature:g}, alpha {first.share:g}"
                + (f", compared in {', '.join(self._taught.compared)}" if self._taught.compared else "")
            )
        self._add_terms(trainer, taught)
        return "; ".join(said)

    @hookimpl(wrapper=True)
    def on_stage_start(self, trainer: Trainer) -> Generator[None, Any, Any]:
        if self._taught is not None:
            self._taught.take_initial()  # before any plugin changes a weight
        return (yield)

    @hookimpl(wrapper=True)
    def on_batch(self) -> Generator[None, Any, Any]:
        parts = [part for part in (self._own, self._taught) if part is not None]
        for part in parts:
            part.capturing = True
        try:
            return (yield)
        finally:  # what was captured must not outlive the step
            for part in parts:
                part.forget()

    @hookimpl
    def on_export(self, artifact: Artifact) -> None:
        """Add the exits that are to be kept."""
        from .record import write_exits

        if self._own is None or self.exits is None:
            return
        kept = self.kept_exits(len(self._own.sections))
        sections, heads = self._own.sections, self._own.heads
        artifact.metadata["kd"] = write_exits(
            artifact.tensors, {each + 1: (sections[each], heads[each]) for each in kept}
        )

    @hookimpl
    def on_load(self, artifact: Artifact, model: nn.Module | None) -> None:
        """Give the model its exits, as `model.exits`; without a model their tensors stay among the others."""
        from .exits import Exits
        from .record import read_exits

        if model is not None:
            if not isinstance(getattr(model, "exits", None), Exits | None):
                raise UsageError("the model has something else named exits: kd cannot put the file's exits there")
            model.exits = read_exits(artifact.metadata["kd"], artifact.tensors, model)  # type: ignore[assignment]

    @hookimpl
    def on_evaluate(self, artifact: Artifact, model: nn.Module) -> dict[str, nn.Module]:
        from .exits import exits_of, ways

        if "kd" not in artifact.metadata:
            for option in ("exits", "confidence"):
                given = getattr(self, option)
                if given is not None:
                    raise UsageError(
                        f"kd.{option} {given}: the file was exported without exits: --kd.exits all keeps them"
                    )
            return {}
        held = exits_of(model).numbers
        wanted = [] if self.exits == "all" else [index + 1 for index in self.kept_exits(MOST)]
        if not set(wanted) <= set(held):
            raise UsageError(f"kd.exits {self.exits}: the file was exported with {', '.join(map(str, held))} alone")
        return ways(model, self.thresholds, wanted)

    def state_dict(self) -> dict[str, Any]:
        """The weights with which the stage began, where they are its teacher."""
        return {"initial": None if self._taught is None else self._taught.initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._initial = None if state["initial"] is None else dict(state["initial"])

    def _learn_from_itself(self, trainer: Trainer, trace: Trace) -> str:
        from .exits import check_rows
        from .own_teacher import OwnTeacher
        from .trace import evaluating

        self._own = OwnTeacher(self, trainer, trace)
        names = self._own.sections
        kept = [names[index] for index in self.kept_exits(len(names))]
        batch = trainer.sample_batch()
        if kept:
            with evaluating(trainer.model):
                wrong = check_rows(trainer.model, kept, lambda: trainer.task.forward(trainer.model, batch))
            if wrong is not None:
                raise UsageError(f"kd.exits {self.exits}: {wrong}: name others with --kd.sections")
        alone = next(plugin for _, plugin in trainer.staged(self) if not plugin.teachers)
        return (
            f"the network is its own teacher, shallow classifiers after {', '.join(names)}, alpha {alone.share:g}"
            + (f", exits kept after {', '.join(kept)}" if kept else "")
        )

    def _add_terms(self, trainer: Trainer, taught: list[Distillation]) -> None:
        """Put the terms into the trainer's losses; each asks for the options of the stage that is running."""
        own, teachers = self._own, self._taught
        task = trainer.losses["task"]

        def scaled_task(batch: Any, output: Any) -> Tensor:
            return (1 - self.weight * self.share if self.teachers else 1.0) * task(batch, output)

        def kd(batch: Any, output: Any) -> Tensor:
            parts = [part.kd(batch, output) for part in (own, teachers) if part is not None]
            return sum(parts[1:], parts[0])

        if teachers is not None:
            trainer.losses["task"] = scaled_task
        if own is not None:
            trainer.losses["kd_labels"] = own.labels
        trainer.losses["kd"] = kd
        if own is not None:
            trainer.losses["kd_features"] = own.features
        if teachers is not None and any(stage.attention for stage in taught):
            trainer.losses["kd_attention"] = teachers.attention
        if teachers is not None and any(stage.hints for stage in taught):
            trainer.losses["kd_hints"] = teachers.hints
