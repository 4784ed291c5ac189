"""The plugin: who teaches in a stage, and which exits outlive it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from makeweight import MakeweightError, UsageError, hookimpl

from .options import MOST, DistillationOptions

if TYPE_CHECKING:
    from torch import nn

    from makeweight import Artifact, Trainer
    from makeweight.plugin import Task

    from .heads import Head
    from .own_teacher import OwnTeacher
    from .taught import Taught
    from .trace import Trace


@dataclass(eq=False)
class Distillation(DistillationOptions):
    """Learn from teachers; with none named, let the deepest classifier teach shallow ones (be your own teacher)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.part: OwnTeacher | Taught | None = None
        self.heads: dict[str, Head] = {}  # the shallow classifiers by section, in this stage
        self.left: list[dict[str, Any]] = []  # what is needed to build those of an earlier stage again

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
        learns = self.weight > 0 and not trainer.ending  # a structure of the stage's end is only exported
        if learns and not self.teachers:
            self._learn_from_itself(trainer, student)
        elif self.exits is not None:
            self._keep_exits(trainer, student)
        if learns and self.teachers:
            self._learn_from_teachers(trainer, student)
        check_exits(self, student, list(self.heads))

    @hookimpl(wrapper=True)
    def on_batch(self) -> Generator[None, Any, Any]:
        if self.part is None:
            return (yield)
        with self.part.capture.step():
            return (yield)

    @hookimpl
    def on_export(self, trainer: Trainer, artifact: Artifact) -> None:
        """Add the exits that are to be kept."""
        from .record import write_exits

        if self.exits is None or (artifact.trial and not self.heads):
            return
        if not self.heads:
            raise MakeweightError(
                f"kd.exits {self.exits}: there are no shallow classifiers to keep: no stage trained them, or the "
                "network's structure has changed since: leave exits out"
            )
        heads = list(self.heads.items())
        exits = {index + 1: heads[index] for index in self.kept_exits(len(heads))}
        artifact.metadata["kd"] = write_exits(artifact.tensors, exits)

    @hookimpl
    def on_attach(self, artifact: Artifact, model: nn.Module) -> None:
        """Give the model its exits, as `model.exits`."""
        from .exits import Exits
        from .record import read_exits

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
        """What is needed to build the shallow classifiers; their weights are kept by the trainer."""
        from .record import described

        return {"heads": [described(section, head) for section, head in self.heads.items()] or self.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from .record import checked

        self.left = checked(state["heads"])

    def _learn_from_itself(self, trainer: Trainer, student: Trace) -> None:
        from .own_teacher import OwnTeacher, new_heads

        self.heads = new_heads(student, self)
        self.part = OwnTeacher(self, trainer, student, self.heads)
        trainer.losses |= self.part.terms

    def _keep_exits(self, trainer: Trainer, student: Trace) -> None:
        """Keep the classifiers that an earlier stage trained, frozen: they are only exported."""
        from .heads import by_section
        from .record import fitting_heads

        self.heads = fitting_heads(self.left, student)
        if not self.heads and not trainer.ending and (self.teachers or self.left):
            raise UsageError(
                f"kd.exits {self.exits}: expected a stage without a teacher before this one, whose shallow classifiers "
                "fit the network as it is now: exits are these"
            )
        if self.heads:
            trainer.add_auxiliary("kd", by_section(self.heads).requires_grad_(False))

    def _learn_from_teachers(self, trainer: Trainer, student: Trace) -> None:
        from .taught import Taught

        self.part = Taught(self, trainer, student)
        labels, share = trainer.losses["task"], 1 - self.weight * self.share
        trainer.losses["task"] = lambda batch, output: share * labels(batch, output)
        trainer.losses |= self.part.terms
