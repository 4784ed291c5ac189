"""Self-distillation (Zhang et al. 2019): shallow classifiers on a trainer's model, and the losses that they add."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from makeweight.plugin import UsageError, logits_of, target_of

from .capture import Capture
from .features import pooled
from .heads import Head, by_section, head_for
from .losses import divergence, feature_distance
from .options import DistillationOptions
from .sections import find_maps, find_sections
from .trace import Trace

if TYPE_CHECKING:
    from makeweight.plugin import Trainer


def shallow_sections(student: Trace, options: DistillationOptions) -> list[str]:
    """The modules whose outputs the shallow classifiers read.

    Raises UsageError for a module that contains the network's last layer, and as `find_sections` and
    `Trace.output_of` do.
    """
    sections, last = find_sections(student, options.sections), student.last_layer.name
    for name in sections:
        if not last or f"{last}.".startswith(f"{name}."):
            raise UsageError(f"kd.sections {name}: it contains the network's last layer: expected a module before it")
        student.output_of(name)
    return sections


def new_heads(student: Trace, options: DistillationOptions) -> dict[str, Head]:
    """Freshly initialised shallow classifiers, by section."""
    outputs = {name: student.output_of(name) for name in shallow_sections(student, options)}
    maps = any(output.ndim == 4 for output in outputs.values())
    deepest = student.output_of(find_maps(student)[-1]) if maps else None
    width = pooled(student.last_layer.input).shape[1]
    return {name: head_for(output, deepest, student.classes, width) for name, output in outputs.items()}


class SelfDistillation:
    """The losses of Zhang et al. 2019: shallow classifiers learn from the labels and from the deepest classifier.

    q_i are a shallow classifier's logits and F_i its features; q_C and F_C are those of the deepest. The heads run in
    hooks inside the model's forward, in training steps only.
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
            self.capture.watch(section, ("shallow", section), _with_adapter(head, adapters[section]))
        self.capture.watch(student.last_layer.name, ("deepest",), lambda inputs, output: pooled(inputs[0]))
        self.losses = {"kd_labels": self.label_loss, "kd": self.kd_loss, "kd_features": self.feature_loss}

    @property
    def shallow(self) -> list[tuple[Tensor, Tensor]]:
        """Logits [B, classes] and adapted features [B, width] of each shallow classifier."""
        return [self.capture.found["shallow", section] for section in self.sections]

    def label_loss(self, batch: Any, output: Any) -> Tensor:
        """(1 - α) · Σ CE(q_i, y)."""
        terms = [self.criterion(logits, target_of(batch)) for logits, _ in self.shallow]
        return self.options.weight * (1 - self.options.kd_weight) * torch.stack(terms).sum()

    def kd_loss(self, batch: Any, output: Any) -> Tensor:
        """α · Σ KL(q_C ‖ q_i)."""
        terms = [divergence(logits, logits_of(output), self.options.temperature) for logits, _ in self.shallow]
        return self.options.weight * self.options.kd_weight * torch.stack(terms).sum()

    def feature_loss(self, batch: Any, output: Any) -> Tensor:
        """λ · Σ ‖F_i - F_C‖."""
        terms = [feature_distance(features, self.capture.found["deepest",]) for _, features in self.shallow]
        return self.options.weight * self.options.feature_weight * torch.stack(terms).sum()


def _with_adapter(head: Head, adapter: nn.Module) -> Callable[[Any, Tensor], tuple[Tensor, Tensor]]:
    """A function of a section's output that gives the head's logits and its features adapted to the deepest width."""

    def run(inputs: Any, section: Tensor) -> tuple[Tensor, Tensor]:
        features = head.features(section.clone())  # an in-place activation after the section would overwrite it
        return head.classifier(features).float(), adapter(features).float()

    return run
