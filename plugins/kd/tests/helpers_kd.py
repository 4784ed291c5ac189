"""What the tests of kd share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from makeweight import Trainer
from makeweight.models import LeNet300, build
from makeweight.options import Stage, StageOptions
from makeweight.task import call_model
from makeweight_kd import Distillation
from makeweight_kd.trace import Trace


def trainer(*plugins: object, model: nn.Module | None = None, classes: int = 10, size: int = 8, channels: int = 1,
            examples: int = 128, **settings: Any) -> Trainer:  # fmt: skip
    """A trainer on random images: two epochs of batches of 32 unless told otherwise."""
    torch.manual_seed(0)
    model = model or LeNet300((channels, size, size), classes)
    data = (torch.randn(examples, channels, size, size), torch.randint(0, classes, (examples,)))
    return Trainer(model, data, plugins=plugins, **{"batch_size": 32, "epochs": 2, **settings})


def small_resnet(classes: int = 10, seed: int = 0) -> nn.Module:
    return build("resnet20", (1, 8, 8), classes, seed)


def traced(model: nn.Module, *shape: int) -> Trace:
    return Trace(model, call_model, [torch.randn(2, *shape)])


def stages(*options: dict[str, Any], epochs: int = 1) -> list[Stage]:
    """A stage for each table of options of kd."""
    return [Stage(StageOptions(epochs=epochs), {"kd": Distillation(**table)}) for table in options]


class Recorder(nn.Module):
    """A teacher that says what it is told to."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer[: len(x)].expand(len(x), -1) if len(self.answer) == 1 else self.answer[: len(x)]
