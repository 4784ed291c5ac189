"""Distillation from teachers: losses on their logits, attention maps and features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from makeweight.plugin import logits_of

from .attention import Adapter, attention_distance, hint_distance
from .capture import Capture
from .losses import divergence
from .matching import compared_modules, matching_modules
from .options import DistillationOptions
from .teachers import INITIAL, frozen, read_teacher
from .trace import Trace

if TYPE_CHECKING:
    from makeweight.plugin import Trainer


class TeacherDistillation:
    """The teachers of a stage and their loss terms.

    For attention and hints, hooks capture the outputs of matching modules in training steps. An adapter for hints runs
    in a hook inside the student's forward.
    """

    def __init__(self, options: DistillationOptions, trainer: Trainer, student: Trace) -> None:
        self.options, self.forward, self.accelerator = options, trainer.task.forward, trainer.accelerator
        self.capture = Capture(trainer.model)
        teachers = {name: _read(name, options, trainer, student) for name in options.teachers}
        self.models = {name: teacher.model for name, teacher in teachers.items()}
        self.pairs: list[tuple[str, str, str]] = []  # the student's module, the teacher's name, the teacher's module
        self.compared = compared_modules(student, options)
        for number, (name, teacher) in enumerate(teachers.items(), 1):
            adapters = self._watch(name, teacher, student)
            if options.hints:
                trainer.add_auxiliary(f"kd_hints_{number}", adapters)
        self.losses: dict[str, Callable[[Any, Any], Tensor]] = {"kd": self.kd_loss}
        self.losses |= {"kd_attention": self.attention_loss} if options.attention else {}
        self.losses |= {"kd_hints": self.hint_loss} if options.hints else {}

    def kd_loss(self, batch: Any, output: Any) -> Tensor:
        """α · T² · KL(teacher ‖ student) (Hinton et al. 2015)."""
        temperature, student = self.options.temperature, logits_of(output)
        factor = self.options.weight * self.options.kd_weight
        if factor == 0:
            return torch.zeros((), device=student.device)
        return factor * temperature**2 * divergence(student, self._teacher_logits(batch), temperature)

    def attention_loss(self, batch: Any, output: Any) -> Tensor:
        """β/2 · Σ ‖Q_s/‖Q_s‖ - Q_t/‖Q_t‖‖ over the compared modules (Zagoruyko & Komodakis 2017)."""
        return self.options.attention / 2 * self._distance(batch, "output", attention_distance)

    def hint_loss(self, batch: Any, output: Any) -> Tensor:
        """The distance between the student's adapted outputs and the teachers' outputs (Romero et al. 2015)."""
        return self.options.hints * self._distance(batch, "adapted", hint_distance)

    def _distance(self, batch: Any, kind: str, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Summed over the compared modules, averaged over the teachers."""
        self._teacher_logits(batch)
        found = self.capture.found
        terms = [
            distance(found[kind, module, name], found["teacher", name, other]) for module, name, other in self.pairs
        ]
        return self.options.weight * torch.stack(terms).sum() / len(self.models)

    def _teacher_logits(self, batch: Any) -> list[Tensor]:
        """The logits [B, classes] of each teacher, computed once for each batch."""
        cached = self.capture.found.get(("logits",))
        if cached is None or cached[0] is not batch:
            with torch.no_grad(), self.accelerator.autocast():
                cached = batch, [logits_of(self.forward(model, batch)) for model in self.models.values()]
            self.capture.found["logits",] = cached
        return cached[1]

    def _watch(self, name: str, teacher: Trace, student: Trace) -> nn.ModuleList:
        """Capture the outputs of a teacher's and the student's matching modules. Returns the adapters for hints."""
        matching = matching_modules(name, teacher, student, self.compared, self.options)
        adapters = nn.ModuleList()
        for module, other in zip(self.compared, matching, strict=True):
            self.pairs.append((module, name, other))
            teacher.model.get_submodule(other).register_forward_hook(partial(self._keep, name, other))
            self.capture.watch(module, ("output", module, name), lambda inputs, output: output)
            if self.options.hints:
                adapters.append(Adapter(student.output_of(module), teacher.output_of(other)))
                self.capture.watch(module, ("adapted", module, name), _with_adapter(adapters[-1]))
        return adapters

    def _keep(self, name: str, other: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.capture.found["teacher", name, other] = output


def _read(name: str, options: DistillationOptions, trainer: Trainer, student: Trace) -> Trace:
    if name == INITIAL:
        return student.of(frozen(trainer.initial_model()))
    return read_teacher(name, options.teacher_model, student, trainer.fresh_model)


def _with_adapter(adapter: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    return lambda inputs, output: adapter(output.clone())  # an in-place activation after the section would overwrite it
