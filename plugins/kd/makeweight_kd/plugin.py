"""The plugin: which teacher there is, and the loss terms that come of it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from makeweight import MakeweightError, UsageError, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from makeweight import Trainer


@dataclass(eq=False)
class Distillation:
    """Learn from a teacher; with none named, let the deepest classifier teach shallow ones (be your own teacher)."""

    teacher: str | None = None
    """an exported model to learn from; unless given, the network is its own teacher"""
    teacher_model: str | None = None
    """the teacher's architecture, as --model names it; the student's own unless given"""
    temperature: float = 3.0
    """by which logits are divided before they are compared"""
    alpha: float | None = None
    """share of the teacher's word against the labels'; 0.3 unless given, 0.9 with a teacher"""
    feature_weight: float = 0.03
    """weight of the distance between shallow and deepest features, λ"""
    sections: list[str] | None = None
    """modules after which shallow classifiers are put, as globs; found unless given"""
    weight: float = 1.0
    """factor on all that distillation adds; 0 turns it off, for a stage"""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UsageError(f"temperature {self.temperature:g}: expected a number above 0")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha {self.alpha:g}: expected 0 <= alpha <= 1")
        if self.feature_weight < 0:
            raise UsageError(f"feature_weight {self.feature_weight:g}: expected 0 or more")
        if not 0 <= self.weight <= 1:
            raise UsageError(f"weight {self.weight:g}: expected 0 <= weight <= 1")
        if self.teacher_model is not None and self.teacher is None:
            raise UsageError(f"teacher_model {self.teacher_model}: expected the teacher's file too, --kd.teacher FILE")
        self._capturing = False  # only within a training step
        self._shallow: dict[str, tuple[Tensor, Tensor]] = {}  # by section: logits and features of this micro-batch
        self._deepest: Tensor | None = None  # the features that the last classifier sees

    @hookimpl
    def on_init(self, trainer: Trainer) -> str:
        for _, other in trainer.staged(self):
            for option in ("teacher", "teacher_model", "sections"):
                if getattr(other, option) != getattr(self, option):
                    raise UsageError(f"kd.{option} {getattr(other, option)}: expected the same in every stage")
        return self._learn_from_itself(trainer) if self.teacher is None else self._learn_from_teacher(trainer)

    @hookimpl(wrapper=True)
    def on_batch(self) -> Generator[None, Any, Any]:
        self._capturing = True
        try:
            return (yield)
        finally:  # what was captured must not outlive the step
            self._capturing = False
            self._shallow, self._deepest = {}, None

    @property
    def share(self) -> float:
        """α, the teacher's share."""
        return (0.3 if self.teacher is None else 0.9) if self.alpha is None else self.alpha

    def _learn_from_teacher(self, trainer: Trainer) -> str:
        """Hinton et al. 2015: (1 - α) task + α T² KL(teacher ‖ student)."""
        import torch

        from makeweight.task import logits_of

        from .losses import divergence

        teacher = self._read_teacher(trainer)
        task = trainer.losses["task"]

        def scaled_task(batch: Any, output: Any) -> Tensor:
            return (1 - self.weight * self.share) * task(batch, output)

        def kd(batch: Any, output: Any) -> Tensor:
            with torch.no_grad(), trainer.accelerator.autocast():
                said = logits_of(trainer.task.forward(teacher, batch))
            loss = divergence(logits_of(output), said, self.temperature)
            return self.weight * self.share * self.temperature**2 * loss

        trainer.losses["task"], trainer.losses["kd"] = scaled_task, kd
        return f"the teacher is {self.teacher}, temperature {self.temperature:g}, alpha {self.share:g}"

    def _read_teacher(self, trainer: Trainer) -> nn.Module:
        """The teacher in eval, without gradients. Raises UsageError when it knows other classes than the student."""
        from makeweight import load, load_tensors
        from makeweight.batches import find_first_tensor
        from makeweight.layers import layers, weight_name
        from makeweight.models import build
        from makeweight.task import logits_of

        assert self.teacher is not None
        if not Path(self.teacher).is_file():
            raise UsageError(f"kd.teacher {self.teacher}: expected an exported model, there is no such file")
        batch = trainer.sample_batch()
        student = logits_of(_call(trainer, trainer.model, batch))
        _check_logits(student)
        classes = student.shape[1]
        if self.teacher_model is None:
            model = trainer.fresh_model()
        else:
            model = build(self.teacher_model, tuple(find_first_tensor(batch).shape[1:]), classes)
        last = weight_name(list(layers(model))[-1])
        known = load_tensors(self.teacher).get(last)
        if known is not None and known.shape[0] != classes:
            raise UsageError(f"kd.teacher {self.teacher}: it knows {known.shape[0]} classes, the student {classes}")
        return load(self.teacher, model).to(trainer.accelerator.device).eval().requires_grad_(False)

    def _learn_from_itself(self, trainer: Trainer) -> str:
        """Zhang et al. 2019: each shallow classifier learns from labels, from the deepest's logits and features."""
        from torch import nn

        from makeweight.task import logits_of, target_of

        from .heads import Head, pooled
        from .losses import divergence, feature_distance
        from .sections import find_sections

        model = trainer.model
        called = _called(trainer)
        names = find_sections(model, called, self.sections)
        last = [name for name in called if name in trainer.layers()][-1]
        seen = _outputs(trainer, [*names, last])
        _check_logits(logits_of(seen[""]))
        logits, width = logits_of(seen[""]), pooled(seen[f"{last} input"]).shape[1]
        heads = [Head(seen[name], width, logits.shape[1]) for name in names]
        trainer.add_auxiliary("kd", nn.ModuleList(heads))

        def capture(name: str, head: nn.Module) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                if self._capturing and module.training:
                    # A copy of a feature map: an activation in place after the section would change the head's input.
                    logits, features = head(output.clone())
                    self._shallow[name] = logits.float(), features.float()

            return hook

        def capture_deepest(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self._capturing and module.training:
                self._deepest = pooled(inputs[0])

        for name, head in zip(names, heads, strict=True):
            model.get_submodule(name).register_forward_hook(capture(name, head))
        model.get_submodule(last).register_forward_pre_hook(capture_deepest)

        def labels(batch: Any, output: Any) -> Tensor:
            terms = [trainer.task.criterion(logits, target_of(batch)) for logits, _ in self._shallow.values()]
            return self.weight * (1 - self.share) * sum(terms[1:], terms[0])

        def kd(batch: Any, output: Any) -> Tensor:
            deepest = logits_of(output)
            terms = [divergence(logits, deepest, self.temperature) for logits, _ in self._shallow.values()]
            return self.weight * self.share * sum(terms[1:], terms[0])

        def features(batch: Any, output: Any) -> Tensor:
            assert self._deepest is not None
            terms = [feature_distance(each, self._deepest) for _, each in self._shallow.values()]
            return self.weight * self.feature_weight * sum(terms[1:], terms[0])

        trainer.losses |= {"kd_labels": labels, "kd": kd, "kd_features": features}
        return f"the network is its own teacher, shallow classifiers after {', '.join(names)}, alpha {self.share:g}"


def _call(trainer: Trainer, model: nn.Module, batch: Any) -> Any:
    """The output for a batch in eval, without gradients and without touching batch norm's statistics."""
    import torch

    training = model.training
    model.eval()
    with torch.no_grad():
        output = trainer.task.forward(model, batch)
    model.train(training)
    return output


def _check_logits(logits: Any) -> None:
    if logits.ndim != 2:
        raise UsageError(f"kd: the model's output has shape {list(logits.shape)}: expected logits, [examples, classes]")


def _called(trainer: Trainer) -> list[str]:
    """The names of the modules in the order in which the model calls them, which need not be that of their making."""
    called: dict[str, None] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: called.setdefault(name)

    named = trainer.model.named_modules()
    handles = [module.register_forward_hook(watch(name)) for name, module in named if name]
    try:
        _call(trainer, trainer.model, trainer.sample_batch())
    finally:
        for handle in handles:
            handle.remove()
    return list(called)


def _outputs(trainer: Trainer, names: list[str]) -> dict[str, Any]:
    """What modules put out for the sample batch, the input of the last of them as `<name> input`, the model's as ''.

    Raises MakeweightError for a module that the model does not call, or that gives no tensor.
    """
    from torch import Tensor

    seen: dict[str, Any] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[name], seen[f"{name} input"] = output, inputs[0] if inputs else None

        return hook

    handles = [trainer.model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        seen[""] = _call(trainer, trainer.model, trainer.sample_batch())
    finally:
        for handle in handles:
            handle.remove()
    for name in names:
        if not isinstance(seen.get(name), Tensor):
            raise MakeweightError(f"kd: module {name!r} gives no tensor: name other sections with --kd.sections")
    return seen
