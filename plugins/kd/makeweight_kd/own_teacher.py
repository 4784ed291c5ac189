"""Be your own teacher: shallow classifiers on a trainer's model, and the loss terms that they add."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from makeweight import UsageError
from makeweight.plugin import logits_of, target_of

from .capture import Capture
from .features import pooled
from .heads import Head, by_section, head_for
from .losses import divergence, feature_distance
from .options import DistillationOptions
from .sections import find_maps, find_sections
from .trace import Trace

if TYPE_CHECKING:
    from makeweight import Trainer


def shallow_sections(student: Trace, options: DistillationOptions) -> list[str]:
    """The modules after which shallow classifiers stand. Raises UsageError where there can be none."""
    sections, last = find_sections(student, options.sections), student.last_layer.name
    for name in sections:
        if not last or f"{last}.".startswith(f"{name}."):
            raise UsageError(f"kd.sections {name}: the network's last layer is in it: expected a module before it")
        student.output_of(name)
    return sections


def new_heads(student: Trace, options: DistillationOptions) -> dict[str, Head]:
    """Freshly initialised shallow classifiers by section."""
    outputs = {name: student.output_of(name) for name in shallow_sections(student, options)}
    maps = any(output.ndim == 4 for output in outputs.values())
    deepest = student.output_of(find_maps(student)[-1]) if maps else None
    width = pooled(student.last_layer.input).shape[1]
    return {name: head_for(output, deepest, student.classes, width) for name, output in outputs.items()}


class OwnTeacher:
    """Zhang et al. 2019: each shallow classifier learns from labels, from the deepest's logits and features.

    The heads run within the model's forward, in training steps alone.
    """

    def __init__(self, options: DistillationOptions, trainer: Trainer, student: Trace, heads: dict[str, Head]) -> None:
        self.options, self.criterion = options, trainer.task.criterion
        self.capture = Capture(trainer.model)
        self.sections = list(heads)
        width = pooled(student.last_layer.input).shape[1]
        adapters = {section: nn.Linear(head.widths[-1], width) for section, head in heads.items()}
        trainer.add_auxiliary("kd", by_section(heads))
        trainer.add_auxiliary("kd_adapters", by_section(adapters))
        for section, head in heads.items():
            self.capture.watch(section, ("shallow", section), _answers(head, adapters[section]))
        self.capture.watch(student.last_layer.name, ("deepest",), lambda inputs, output: pooled(inputs[0]))
        self.terms = {"kd_labels": self.labels, "kd": self.kd, "kd_features": self.features}

    @property
    def shallow(self) -> list[tuple[Tensor, Tensor]]:
        """Logits [B, classes] and adapted features [B, width] of each shallow classifier."""
        return [self.capture.found["shallow", section] for section in self.sections]

    def labels(self, batch: Any, output: Any) -> Tensor:
        """(1 - α) · CE(q_i, y) over the shallow classifiers."""
        terms = [self.criterion(logits, target_of(batch)) for logits, _ in self.shallow]
        return self.options.weight * (1 - self.options.share) * torch.stack(terms).sum()

    def kd(self, batch: Any, output: Any) -> Tensor:
        """α · KL(q_C ‖ q_i)."""
        terms = [divergence(logits, logits_of(output), self.options.temperature) for logits, _ in self.shallow]
        return self.options.weight * self.options.share * torch.stack(terms).sum()

    def features(self, batch: Any, output: Any) -> Tensor:
        """λ · ‖F_i - F_C‖."""
        terms = [feature_distance(features, self.capture.found["deepest",]) for _, features in self.shallow]
        return self.options.weight * self.options.feature_weight * torch.stack(terms).sum()


def _answers(head: Head, adapter: nn.Module) -> Callable[[Any, Tensor], tuple[Tensor, Tensor]]:
    """A head as it is trained: with the linear adapter that makes its features comparable with the deepest ones."""

    def answers(inputs: Any, section: Tensor) -> tuple[Tensor, Tensor]:
        features = head.features(section.clone())  # an activation in place after the section would change it
        return head.classifier(features).float(), adapter(features).float()

    return answers
