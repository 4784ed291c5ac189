"""Learning from teachers: the loss terms of their logits, of their attention and of their hints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from makeweight import UsageError
from makeweight.distributed import from_first
from makeweight.task import logits_of

from .attention import Adapter, attention_distance, hint_distance
from .features import height
from .losses import divergence, total
from .sections import find_maps, find_sections
from .teachers import INITIAL, as_it_was, read_teacher, traced

if TYPE_CHECKING:
    from makeweight import Trainer

    from .plugin import Distillation
    from .trace import Trace


class Taught:
    """The teachers of all stages, and what those of the present one have to say about a batch.

    Where attention or hints are asked for in any stage, the outputs of matching modules are captured in training
    steps; an adapter for hints runs within the model's forward. All of it is forgotten after each step.
    """

    def __init__(self, plugin: Distillation, trainer: Trainer, trace: Trace, stages: Sequence[Distillation]) -> None:
        self.plugin, self.trainer = plugin, trainer
        self.initial: dict[str, Tensor] | None = None  # the weights with which the stage began, where they teach
        self.models: dict[str, nn.Module] = {}
        self.modules: dict[str, list[str]] = {}  # by teacher: what is compared with the student's `compared`
        self.outputs: dict[str, dict[str, Tensor]] = {}  # by teacher and module, of this micro-batch
        self.ours: dict[str, Tensor] = {}
        self.adapted: dict[str, dict[str, Tensor]] = {}  # by teacher and module of the student
        self.said: tuple[Any, list[Tensor]] | None = None  # a micro-batch, and what the teachers say of it
        self.capturing = False
        comparing = [stage for stage in stages if stage.attention or stage.hints]
        self.compared = _compared(trace, plugin, any(stage.attention for stage in stages)) if comparing else []
        for name in dict.fromkeys(name for stage in stages for name in stage.teachers):
            if name != INITIAL:
                self.models[name] = read_teacher(trainer, name, plugin.teacher_model, trace)
            if comparing and any(name in stage.teachers for stage in comparing):
                found = trace if name == INITIAL else traced(trainer, self.models[name], name)
                self._compare(name, found, trace, any(stage.hints for stage in stages))
        for name in self.compared:
            self.trainer.model.get_submodule(name).register_forward_hook(self._capture_ours(name))

    def forget(self) -> None:
        self.capturing = False
        self.said = None
        self.ours, self.adapted, self.outputs = {}, {}, {}

    def take_initial(self) -> None:
        """Keep the weights of now, where this stage's teacher is what the network was; else none."""
        self.models.pop(INITIAL, None)
        self.initial = None
        if INITIAL in self.plugin.teachers and self.plugin.weight > 0:
            state = self.trainer.model.state_dict()
            self.initial = {
                name: from_first(self.trainer.accelerator, tensor).clone() for name, tensor in state.items()
            }

    def kd(self, batch: Any, output: Any) -> Tensor:
        """Hinton et al. 2015: α T² KL(teacher ‖ student)."""
        plugin, student = self.plugin, logits_of(output)
        factor = plugin.weight * plugin.share
        if not plugin.teachers or factor == 0:
            return student.new_zeros((), dtype=torch.float32)
        return factor * plugin.temperature**2 * divergence(student, self._say(batch), plugin.temperature)

    def attention(self, batch: Any, output: Any) -> Tensor:
        """Zagoruyko & Komodakis 2017: β/2 · Σ ‖Q_s/‖Q_s‖ - Q_t/‖Q_t‖‖, the mean over the teachers."""
        factor = self.plugin.weight * self.plugin.attention / 2
        if not self.plugin.teachers or factor == 0:
            return logits_of(output).new_zeros((), dtype=torch.float32)
        self._say(batch)
        terms = [
            attention_distance(self.ours[ours], self.outputs[teacher][theirs])
            for teacher in self.plugin.teachers
            for ours, theirs in zip(self.compared, self.modules[teacher], strict=True)
        ]
        return factor * total(terms) / len(self.plugin.teachers)

    def hints(self, batch: Any, output: Any) -> Tensor:
        """Romero et al. 2015: the distance of the student's adapted outputs from the teachers'."""
        factor = self.plugin.weight * self.plugin.hints
        teachers = [name for name in self.plugin.teachers if factor]
        # Every adapter takes part in every step, as several processes ask for.
        idle = [each for name, outputs in self.adapted.items() if name not in teachers for each in outputs.values()]
        terms = [each.float().sum() * 0 for each in idle]
        if teachers:
            self._say(batch)
        for name in teachers:
            pairs = zip(self.adapted[name].values(), self.modules[name], strict=True)
            terms += [
                factor * hint_distance(ours, self.outputs[name][theirs]) / len(teachers) for ours, theirs in pairs
            ]
        return total(terms)

    def _say(self, batch: Any) -> list[Tensor]:
        """The logits [B, classes] of this stage's teachers; the batch goes through each of them once."""
        if self.said is None or self.said[0] is not batch:
            said = []
            for name in self.plugin.teachers:
                if name not in self.models:
                    assert self.initial is not None
                    self.models[name] = self._watched(name, as_it_was(self.trainer.model, self.initial))
                with torch.no_grad(), self.trainer.accelerator.autocast():
                    said.append(logits_of(self.trainer.task.forward(self.models[name], batch)))
            self.said = batch, said
        return self.said[1]

    def _compare(self, teacher: str, theirs: Trace, ours: Trace, hints: bool) -> None:
        """Match a teacher's modules with the student's, and make the adapters where there are hints."""
        named = self.plugin.teacher_sections
        if teacher == INITIAL and named is None:
            found = self.compared
        elif named is not None:
            found = find_sections(theirs, named, "teacher_sections")
        else:
            found = _like(theirs, [ours.output_of(name) for name in self.compared])
        if len(found) != len(self.compared):
            raise UsageError(
                f"kd.teacher {teacher}: its {len(found)} sections ({', '.join(found)}) do not match the student's "
                f"{len(self.compared)} ({', '.join(self.compared)}): name both, kd.sections and kd.teacher_sections"
            )
        self.modules[teacher] = found
        if teacher in self.models:
            self._watched(teacher, self.models[teacher])
        if hints:
            pairs = zip(self.compared, found, strict=True)
            adapters = [Adapter(ours.output_of(one), theirs.output_of(other)) for one, other in pairs]
            name = f"kd_hints_{len(self.modules)}"
            self.trainer.add_auxiliary(name, nn.ModuleList(adapters))
            for index, one in enumerate(self.compared):
                self.trainer.model.get_submodule(one).register_forward_hook(self._adapt(teacher, one, adapters[index]))

    def _watched(self, teacher: str, model: nn.Module) -> nn.Module:
        for name in self.modules.get(teacher, []):
            model.get_submodule(name).register_forward_hook(self._capture_theirs(teacher, name))
        return model

    def _capture_theirs(self, teacher: str, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self.capturing:
                self.outputs.setdefault(teacher, {})[name] = output

        return hook

    def _capture_ours(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self.capturing and module.training:
                self.ours[name] = output

        return hook

    def _adapt(self, teacher: str, name: str, adapter: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self.capturing and module.training:
                self.adapted.setdefault(teacher, {})[name] = adapter(output.clone())

        return hook


def _compared(trace: Trace, plugin: Distillation, attention: bool) -> list[str]:
    """The student's modules that are compared with a teacher's."""
    if plugin.sections is not None:
        names = find_sections(trace, plugin.sections)
        for name in names:
            if attention and height(trace.output_of(name)) is None:
                raise UsageError(f"kd.sections {name}: attention is compared in feature maps, it gives none")
        return names
    try:
        return find_maps(trace)
    except UsageError:
        if attention:
            raise
        return find_sections(trace)


def _like(trace: Trace, ours: Sequence[Tensor]) -> list[str]:
    return find_maps(trace) if all(each.ndim == 4 for each in ours) else find_sections(trace)
