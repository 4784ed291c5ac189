"""Helpers of kd's tests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from makeweight import LoopOptions, Run, Stage, Trainer, hookimpl
from makeweight.discovery import name_of
from makeweight.models.by_name import build
from makeweight.models.lenets import LeNet300
from makeweight.plugin import Structure, replace
from makeweight.task import call_model
from makeweight_kd import Distillation
from makeweight_kd.self_distillation import SelfDistillation
from makeweight_kd.teacher_distillation import TeacherDistillation
from makeweight_kd.trace import Trace


def images(examples: int = 128, classes: int = 10, size: int = 8, channels: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(examples, channels, size, size), torch.randint(0, classes, (examples,))


def trainer(*plugins: object, model: nn.Module | None = None, classes: int = 10, size: int = 8, channels: int = 1,
            examples: int = 128, **settings: Any) -> Trainer:  # fmt: skip
    """A trainer on random images; by default two epochs with a batch size of 32."""
    torch.manual_seed(0)
    model = model or LeNet300((channels, size, size), classes)
    data = images(examples, classes, size, channels)
    return Trainer(model, data, plugins=plugins, **{"batch_size": 32, "epochs": 2, **settings})


def small_resnet(classes: int = 10, seed: int = 0) -> nn.Module:
    return build("resnet20", (1, 8, 8), classes, seed)


def traced(model: nn.Module, *shape: int) -> Trace:
    return Trace(model, call_model, [torch.randn(4, *shape)])


def staged(model: nn.Module, *stages: Sequence[object], out: Path | None = None, resume: bool = False,
           **settings: Any) -> Run:  # fmt: skip
    """A run on random images with these plugins in each stage; by default one epoch a stage."""
    options = LoopOptions(**{"batch_size": 32, "epochs": 1, **settings})
    named = [Stage(options, {name_of(plugin): plugin for plugin in plugins}) for plugins in stages]
    return Run(model, images(), None, named, out=out, resume=resume)


@dataclass(eq=False)
class Look:
    """Calls functions with the trainer, before training and after each epoch."""

    begin: Callable[[Trainer], None] | None = None
    end: Callable[[Trainer, dict[str, float]], None] | None = None

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        if self.begin is not None:
            self.begin(trainer)

    @hookimpl
    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if self.end is not None:
            self.end(trainer, metrics)


def self_distillation(plugin: Distillation) -> SelfDistillation:
    """The plugin's method in a stage without teachers."""
    assert isinstance(plugin.method, SelfDistillation)
    return plugin.method


def teacher_distillation(plugin: Distillation) -> TeacherDistillation:
    """The plugin's method in a stage with teachers."""
    assert isinstance(plugin.method, TeacherDistillation)
    return plugin.method


@dataclass(eq=False)
class Change:
    """Changes the widths of layers in the network of `layers`, or replaces one layer by two."""

    to: str = "narrow"
    ending: bool = False
    record_number: ClassVar[int] = 1

    @hookimpl
    def on_structure(self, trainer: Trainer) -> Structure | None:
        return Structure({"number": 1, "to": self.to}) if trainer.ending == self.ending else None

    @hookimpl
    def on_build(self, model: nn.Module, record: dict[str, Any]) -> None:
        if record["to"] == "narrow":
            replace(model, "first", nn.Linear(64, 9))
            replace(model, "norm", nn.BatchNorm1d(9))
            replace(model, "second", nn.Linear(9, 12))
        elif record["to"] == "last":
            replace(model, "second", nn.Linear(12, 11))
            replace(model, "third", nn.Linear(11, 10))
        else:
            replace(model, "first", nn.Sequential(nn.Linear(64, 5), nn.Linear(5, 12)))


def install_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install an entry point for `Change`: resuming and loading find it by that."""
    info = folder / "change-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: change\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[makeweight]\nchange = {Change.__module__}:Change\n")
    monkeypatch.syspath_prepend(folder)


def layers() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(OrderedDict(
        flat=nn.Flatten(), first=nn.Linear(64, 12), norm=nn.BatchNorm1d(12), relu=nn.ReLU(), second=nn.Linear(12, 12),
        again=nn.ReLU(), third=nn.Linear(12, 10)))  # fmt: skip


def assert_same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


class Recorder(nn.Module):
    """A teacher that returns a given answer."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer[: len(x)].expand(len(x), -1) if len(self.answer) == 1 else self.answer[: len(x)]
