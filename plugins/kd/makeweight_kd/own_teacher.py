"""Be your own teacher: shallow classifiers on a trainer's model, and the loss terms that they add."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from makeweight import UsageError
from makeweight.layers import KINDS
from makeweight.task import logits_of, target_of

from .features import pooled
from .heads import Head, Student, head_for
from .losses import divergence, feature_distance, total
from .sections import find_maps, find_sections

if TYPE_CHECKING:
    from makeweight import Trainer

    from .plugin import Distillation
    from .trace import Trace


class OwnTeacher:
    """Zhang et al. 2019: each shallow classifier learns from labels, from the deepest's logits and features.

    The heads run within the model's forward, in training steps alone; what they give is forgotten after each.
    """

    def __init__(self, plugin: Distillation, trainer: Trainer, trace: Trace) -> None:
        self.plugin, self.trainer = plugin, trainer
        self.capturing = False  # only within a training step
        self.shallow: dict[str, tuple[Tensor, Tensor]] = {}  # by section: logits and features of this micro-batch
        self.deepest: Tensor | None = None  # the features that the last classifier sees
        self.sections = find_sections(trace, plugin.sections)
        modules = dict(trainer.model.named_modules())
        last = [call for call in trace.calls if isinstance(modules[call.name], KINDS)][-1]
        for name in self.sections:
            if f"{last.name}.".startswith(f"{name}."):
                raise UsageError(f"kd.sections {name}: the network's last layer is in it: expected a module before it")
        width, classes = pooled(last.input).shape[1], trace.logits.shape[1]
        outputs = [trace.output_of(name) for name in self.sections]
        deepest = trace.output_of(find_maps(trace)[-1]) if any(output.ndim == 4 for output in outputs) else None
        students = [Student(head_for(output, deepest, classes, width), width) for output in outputs]
        trainer.add_auxiliary("kd", nn.ModuleList(students))
        for name, student in zip(self.sections, students, strict=True):
            modules[name].register_forward_hook(self._capture(name, student))
        modules[last.name].register_forward_pre_hook(self._capture_deepest())

    @property
    def heads(self) -> list[Head]:
        students: Any = self.trainer.auxiliary["kd"]
        return [student.head for student in students]

    def forget(self) -> None:
        self.capturing = False
        self.shallow, self.deepest = {}, None

    def labels(self, batch: Any, output: Any) -> Tensor:
        """(1 - α) · CE(q_i, y) over the shallow classifiers."""
        target = target_of(batch)
        terms = [self.trainer.task.criterion(logits, target) for logits, _ in self.shallow.values()]
        return self._weight * (1 - self.plugin.share) * total(terms)

    def kd(self, batch: Any, output: Any) -> Tensor:
        """α · KL(q_C ‖ q_i)."""
        deepest = logits_of(output)
        terms = [divergence(logits, deepest, self.plugin.temperature) for logits, _ in self.shallow.values()]
        return self._weight * self.plugin.share * total(terms)

    def features(self, batch: Any, output: Any) -> Tensor:
        """λ · ‖F_i - F_C‖."""
        assert self.deepest is not None
        terms = [feature_distance(each, self.deepest) for _, each in self.shallow.values()]
        return self._weight * self.plugin.feature_weight * total(terms)

    @property
    def _weight(self) -> float:
        """0 in a stage with another teacher: every parameter has to take part in every step of several processes."""
        return 0.0 if self.plugin.teachers else self.plugin.weight

    def _capture(self, name: str, student: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self.capturing and module.training:
                # A copy of a feature map: an activation in place after the section would change the head's input.
                logits, features = student(output.clone())
                self.shallow[name] = logits.float(), features.float()

        return hook

    def _capture_deepest(self) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # a method would be copied with the model
            if self.capturing and module.training:
                self.deepest = pooled(inputs[0])

        return hook
