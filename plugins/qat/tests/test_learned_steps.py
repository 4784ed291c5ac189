"""`ranges: learned`: every step size begins at the value that its first observation gives, and nothing lifts it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from makeweight import Trainer, hookimpl
from makeweight_qat import Quantization

STEPS_PER_EPOCH = 5
FROZEN: dict[str, Any] = {"lr": 1e-30, "weight_decay": 0.0, "schedule": "constant"}


@dataclass(eq=False)
class Record:
    """The step sizes after each training step, and the activations [B, …] that the step saw, by name.

    Comes before qat in the list of plugins, so that it acts after qat has updated its ranges.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    activations: list[dict[str, Tensor]] = field(default_factory=list)

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        def keep(name: str, tensor: Tensor) -> None:
            if trainer.model.training:
                self.activations[-1][name] = tensor.detach().clone()

        trainer.model.register_forward_pre_hook(lambda module, inputs: keep("input_1", inputs[0]))
        trainer.model.get_submodule("1").register_forward_hook(lambda module, inputs, output: keep("_1", output))

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer) -> Generator[None, Any, Any]:
        self.activations.append({})
        loss = yield
        observed = plugin(trainer).observed
        steps = observed.scales().tolist()
        self.steps.append({name: step for (_, name), step in zip(observed.bits, steps, strict=True)})
        return loss


def plugin(trainer: Trainer) -> Any:
    return trainer.plugins.by_name["qat"]


def make(record: Record, begin: float, epochs: int = 2, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.randn(32 * STEPS_PER_EPOCH, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    data = x, (x.mean((1, 2, 3)) > 0).long()
    plugins = {"record": record, "qat": Quantization(ranges="learned", begin=begin)}
    trainer = Trainer(model, data, data, plugins=plugins, batch_size=32, epochs=epochs, **settings)
    trainer.journal.console.quiet = True
    return trainer


def expected(activations: Tensor) -> float:
    """The initial step size for 8 bits: Esser et al. 2020, section 2.1, and no wider than the range needs."""
    low, high = float(activations.min().clamp_max(0)), float(activations.max().clamp_min(0))
    return min(2 * float(activations.abs().mean()) / math.sqrt(255), (high - low) / 255)


@pytest.mark.parametrize("begin", [0.0, 0.4, 1.0])
def test_steps_of_activations_stay_at_their_initial_values_when_nothing_is_learned(begin: float) -> None:
    record = Record()
    make(record, begin, **FROZEN).fit()
    first = round(begin * STEPS_PER_EPOCH)
    assert len(record.steps) == 2 * STEPS_PER_EPOCH
    assert record.steps[:first] == [{"input_1": 1.0, "_1": 1.0}] * first  # placeholders until quantization begins
    for name, activations in record.activations[first].items():
        initial = record.steps[first][name]
        assert initial == pytest.approx(expected(activations), rel=1e-5)
        assert initial < 0.05  # far below half of the placeholder
        assert [steps[name] for steps in record.steps[first:]] == [initial] * (2 * STEPS_PER_EPOCH - first)


def test_steps_of_activations_are_learned_from_their_initial_values() -> None:
    record = Record()
    make(record, 0.0, lr=0.01).fit()
    for name, activations in record.activations[0].items():
        course = [steps[name] for steps in record.steps]
        assert course[0] == pytest.approx(expected(activations), rel=1e-5)
        assert len(set(course)) == len(course)  # every later training step moves it
        assert 0 < course[STEPS_PER_EPOCH - 1] < 0.05
        assert 0 < course[-1] < 0.05


@pytest.mark.slow  # a run for every checkpoint
@pytest.mark.parametrize("begin", [0.0, 0.4])
@pytest.mark.parametrize("lr", [1e-30, 0.01])
def test_a_resumed_run_goes_on_with_the_same_steps(begin: float, lr: float, tmp_path: Path) -> None:
    """From every checkpoint: before quantization begins, right after its first step, and later."""
    whole, settings = Record(), FROZEN | {"lr": lr, "checkpoint_every": 1, "keep_checkpoints": 99}
    trainer = make(whole, begin, out=tmp_path / "whole", **settings)
    trainer.fit()
    assert max(step for steps in whole.steps[round(begin * STEPS_PER_EPOCH) :] for step in steps.values()) < 0.05
    written = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    for number in range(1, len(written) - 1):
        out = tmp_path / f"until {number}"
        for path in written[: number + 1]:
            shutil.copytree(path, out / "checkpoints" / path.name)
        rest = Record()
        resumed = make(rest, begin, out=out, resume=True, **settings)
        resumed.fit()
        assert rest.steps == whole.steps[-len(rest.steps) :], written[number].name
        assert torch.equal(plugin(resumed).observed.scales(), plugin(trainer).observed.scales())
    assert len(rest.steps) < STEPS_PER_EPOCH
