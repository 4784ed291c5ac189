"""Learning from teachers: the loss terms of their logits, of their attention and of their hints."""

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
    from makeweight import Trainer


class Taught:
    """The teachers of a stage, and what they have to say about a batch.

    Where attention or hints are asked for, the outputs of matching modules are captured in training steps; an adapter
    for hints runs within the model's forward.
    """

    def __init__(self, options: DistillationOptions, trainer: Trainer, student: Trace) -> None:
        self.options, self.forward, self.accelerator = options, trainer.task.forward, trainer.accelerator
        self.capture = Capture(trainer.model)
        teachers = {name: _teacher(name, options, trainer, student) for name in options.teachers}
        self.models = {name: theirs.model for name, theirs in teachers.items()}
        self.pairs: list[tuple[str, str, str]] = []  # the student's module, the teacher, and its module
        self.compared = compared_modules(student, options)
        for number, (name, theirs) in enumerate(teachers.items(), 1):
            adapters = self._compare(name, theirs, student)
            if options.hints:
                trainer.add_auxiliary(f"kd_hints_{number}", adapters)
        self.terms: dict[str, Callable[[Any, Any], Tensor]] = {"kd": self.kd}
        self.terms |= {"kd_attention": self.attention} if options.attention else {}
        self.terms |= {"kd_hints": self.hints} if options.hints else {}

    def kd(self, batch: Any, output: Any) -> Tensor:
        """Hinton et al. 2015: α T² KL(teacher ‖ student)."""
        temperature, student = self.options.temperature, logits_of(output)
        factor = self.options.weight * self.options.share
        if factor == 0:
            return student.new_zeros((), dtype=torch.float32)
        return factor * temperature**2 * divergence(student, self._say(batch), temperature)

    def attention(self, batch: Any, output: Any) -> Tensor:
        """Zagoruyko & Komodakis 2017: β/2 · Σ ‖Q_s/‖Q_s‖ - Q_t/‖Q_t‖‖."""
        return self.options.attention / 2 * self._distance(batch, "output", attention_distance)

    def hints(self, batch: Any, output: Any) -> Tensor:
        """Romero et al. 2015: the distance of the student's adapted outputs from the teachers'."""
        return self.options.hints * self._distance(batch, "adapted", hint_distance)

    def _distance(self, batch: Any, kind: str, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sum over the modules that are compared, the mean over the teachers."""
        self._say(batch)
        found = self.capture.found
        terms = [distance(found[kind, ours, name], found["teacher", name, other]) for ours, name, other in self.pairs]
        return self.options.weight * torch.stack(terms).sum() / len(self.models)

    def _say(self, batch: Any) -> list[Tensor]:
        """The logits [B, classes] of the teachers; the batch goes through each of them once."""
        said = self.capture.found.get(("said",))
        if said is None or said[0] is not batch:
            with torch.no_grad(), self.accelerator.autocast():
                said = batch, [logits_of(self.forward(model, batch)) for model in self.models.values()]
            self.capture.found["said",] = said
        return said[1]

    def _compare(self, teacher: str, theirs: Trace, student: Trace) -> nn.ModuleList:
        """Find the teacher's modules that are compared, and watch them. Returns the adapters for hints, if any."""
        found = matching_modules(teacher, theirs, student, self.compared, self.options)
        adapters = nn.ModuleList()
        for ours, name in zip(self.compared, found, strict=True):
            self.pairs.append((ours, teacher, name))
            theirs.model.get_submodule(name).register_forward_hook(partial(self._keep, teacher, name))
            self.capture.watch(ours, ("output", ours, teacher), lambda inputs, output: output)
            if self.options.hints:
                adapters.append(Adapter(student.output_of(ours), theirs.output_of(name)))
                self.capture.watch(ours, ("adapted", ours, teacher), _adapted(adapters[-1]))
        return adapters

    def _keep(self, teacher: str, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.capture.found["teacher", teacher, name] = output


def _teacher(name: str, options: DistillationOptions, trainer: Trainer, student: Trace) -> Trace:
    if name == INITIAL:
        return student.of(frozen(trainer.initial_model()))
    return read_teacher(name, options.teacher_model, student, trainer.fresh_model)


def _adapted(adapter: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    return lambda inputs, output: adapter(output.clone())  # an activation in place after the section would change it
