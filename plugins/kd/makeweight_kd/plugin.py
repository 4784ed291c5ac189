"""The plugin class: attaches distillation to a stage, and carries exits from stage to stage and into the export."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from makeweight.plugin import MakeweightError, UsageError, hookimpl

from .options import MOST, DistillationOptions

if TYPE_CHECKING:
    from torch import nn

    from makeweight.plugin import Artifact, Task, Trainer

    from .heads import Head
    from .self_distillation import SelfDistillation
    from .teacher_distillation import TeacherDistillation
    from .trace import Trace


@dataclass(eq=False)
class Distillation(DistillationOptions):
    """Learn from teachers. Without a teacher, the network's deepest classifier teaches shallow classifiers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method: SelfDistillation | TeacherDistillation | None = None
        self.heads: dict[str, Head] = {}  # this stage's shallow classifiers, by section
        self.earlier: list[dict[str, Any]] = []  # descriptions of an earlier stage's heads (record.py)

    @hookimpl
    def on_check(self, model: nn.Module | None, batch: Any, task: Task) -> str:
        from .check import check

        return check(self, model, batch, task)

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        if not self.weight and self.exits is None:
            return
        from .check import check_exits
        from .trace import Trace

        student = Trace(trainer.model, trainer.task.forward, trainer.sample_batch())
        trains = self.weight > 0 and not trainer.ending  # a structure that ends a stage is exported untrained
        if trains and not self.teachers:
            self._learn_from_itself(trainer, student)
        elif self.exits is not None:
            self._keep_exits(trainer, student)
        if trains and self.teachers:
            self._learn_from_teachers(trainer, student)
        check_exits(self, student, list(self.heads))

    @hookimpl(wrapper=True)
    def on_batch(self) -> Generator[None, Any, Any]:
        if self.method is None:
            return (yield)
        with self.method.capture.step():
            return (yield)

    @hookimpl
    def on_export(self, trainer: Trainer, artifact: Artifact) -> None:
        """Add the exits that `exits` names to the file."""
        from .record import write_exits

        if self.exits is None or (artifact.trial and not self.heads):
            return
        if not self.heads:
            raise MakeweightError(
                f"kd.exits {self.exits}: there are no shallow classifiers to export: no stage trained any, or the "
                "network's structure has changed since then: leave kd.exits out"
            )
        heads = list(self.heads.items())
        exits = {index + 1: heads[index] for index in self.kept_exits(len(heads))}
        artifact.metadata["kd"] = write_exits(artifact.tensors, exits)

    @hookimpl
    def on_attach(self, artifact: Artifact, model: nn.Module) -> None:
        """Attach the file's exits to the model as `model.exits`."""
        from .exits import Exits
        from .record import read_exits

        if not isinstance(getattr(model, "exits", None), Exits | None):
            raise UsageError("kd: the model already has an attribute named exits: rename it to load this file's exits")
        model.exits = read_exits(artifact.metadata["kd"], artifact.tensors, model)  # type: ignore[assignment]

    @hookimpl
    def on_evaluate(self, artifact: Artifact, model: nn.Module) -> dict[str, nn.Module]:
        from .exits import exit_policies, exits_of

        if "kd" not in artifact.metadata:
            for option in ("exits", "confidence"):
                given = getattr(self, option)
                if given is not None:
                    raise UsageError(f"kd.{option} {given}: the file has no exits: export it with --kd.exits all")
            return {}
        present = exits_of(model).numbers
        wanted = [] if self.exits == "all" else [index + 1 for index in self.kept_exits(MOST)]
        if not set(wanted) <= set(present):
            raise UsageError(f"kd.exits {self.exits}: expected exits of the file: {', '.join(map(str, present))}")
        return exit_policies(model, self.thresholds, wanted)

    def state_dict(self) -> dict[str, Any]:
        """The descriptions of the shallow classifiers. The trainer stores their weights, as an auxiliary module."""
        from .record import describe

        return {"heads": [describe(section, head) for section, head in self.heads.items()] or self.earlier}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from .record import validate

        self.earlier = validate(state["heads"])

    def _learn_from_itself(self, trainer: Trainer, student: Trace) -> None:
        from .self_distillation import SelfDistillation, new_heads

        self.heads = new_heads(student, self)
        self.method = SelfDistillation(self, trainer, student, self.heads)
        trainer.losses |= self.method.losses

    def _keep_exits(self, trainer: Trainer, student: Trace) -> None:
        """Restore an earlier stage's shallow classifiers, frozen, for the export."""
        from .heads import by_section
        from .record import fitting_heads

        self.heads = fitting_heads(self.earlier, student)
        if not self.heads and not trainer.ending and (self.teachers or self.earlier):
            raise UsageError(
                f"kd.exits {self.exits}: expected an earlier stage without a teacher that trained shallow classifiers "
                "for the network's present structure"
            )
        if self.heads:
            trainer.add_auxiliary("kd", by_section(self.heads).requires_grad_(False))

    def _learn_from_teachers(self, trainer: Trainer, student: Trace) -> None:
        from .teacher_distillation import TeacherDistillation

        self.method = TeacherDistillation(self, trainer, student)
        label_loss, label_weight = trainer.losses["task"], 1 - self.weight * self.kd_weight
        trainer.losses["task"] = lambda batch, output: label_weight * label_loss(batch, output)
        trainer.losses |= self.method.losses
