"""The contract of hookspecs.py: every hook is documented, fires, and fires when it says."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from makeweight import Artifact, Trainer, hookimpl, hookspecs
from makeweight.files.artifact import read, write
from makeweight.files.write_programs import program
from makeweight.loading import attach, decode
from makeweight.models.lenets import LeNet300
from makeweight.models.state import exported_state, restore
from makeweight.models.structure import Structure
from makeweight.options import StageOptions
from makeweight.task import Task

HOOKS = [name for name, spec in vars(hookspecs).items() if hasattr(spec, "makeweight_spec")]


@dataclass(eq=False)
class Recorder:
    calls: list[str]
    name: str = ""

    @hookimpl
    def on_check(self, options: StageOptions, model: nn.Module | None, batch: Any, task: Task) -> str:
        self.calls.append(f"{self.name}on_check")
        assert model is None or task.forward(model, batch).shape == (len(batch[0]), 10)
        return f"{options.epochs} epochs"

    @hookimpl
    def on_structure(self, trainer: Trainer) -> Structure | None:
        self.calls.append(f"{self.name}on_structure{' ending' if trainer.ending else ''}")
        return None

    @hookimpl
    def on_build(self, model: nn.Module, record: dict[str, Any]) -> None:
        self.calls.append(f"{self.name}on_build")

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        self.calls.append(f"{self.name}on_init")

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer, batches: list[Any]) -> Generator[None, Any, Any]:
        self.calls.append(f"{self.name}before")
        loss = yield
        assert loss.ndim == 0
        assert not loss.requires_grad
        self.calls.append(f"{self.name}after")
        return loss

    @hookimpl
    def on_epoch_end(self, metrics: dict[str, float]) -> None:
        self.calls.append(f"{self.name}on_epoch_end")
        metrics["recorded"] = 1.0

    @hookimpl
    def on_export(self, artifact: Artifact) -> None:
        self.calls.append(f"{self.name}on_export")

    @hookimpl
    def on_program(self, model: nn.Module) -> None:
        self.calls.append(f"{self.name}on_program")

    @hookimpl
    def on_load(self, artifact: Artifact) -> None:
        self.calls.append(f"{self.name}on_load")

    @hookimpl
    def on_attach(self, artifact: Artifact, model: nn.Module) -> None:
        self.calls.append(f"{self.name}on_attach")

    @hookimpl
    def on_evaluate(self, artifact: Artifact, model: nn.Module) -> dict[str, nn.Module]:
        self.calls.append(f"{self.name}on_evaluate")
        return {"twice": nn.Sequential(model, nn.Softmax(1))}


def trainer(*plugins: object, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    data = (torch.randn(64, 1, 4, 4), torch.randint(0, 10, (64,)))
    named = {f"plugin{number}": plugin for number, plugin in enumerate(plugins)}
    return Trainer(LeNet300((1, 4, 4), 10), data, plugins=named, **{"batch_size": 32, "epochs": 2, **settings})


@pytest.mark.parametrize("name", HOOKS)
def test_each_hook_says_when_it_fires_and_stands_in_the_picture_of_the_loop(name: str) -> None:
    assert (getattr(hookspecs, name).__doc__ or "").startswith(("Fires", "Surrounds"))
    assert f"{name}(" in (hookspecs.__doc__ or "")
    assert hasattr(Recorder, name)


def test_hooks_fire_in_the_order_of_the_picture(tmp_path: Path) -> None:
    calls: list[str] = []
    run = trainer(Recorder(calls))
    metrics = run.fit()
    run.export(tmp_path / "model.safetensors")
    program(run)
    epoch = ["before", "after"] * 2 + ["on_epoch_end"]
    begin = ["on_check", "on_structure", "on_init"]
    assert calls == [*begin, *epoch, *epoch, "on_structure ending", "on_export", "on_program"]
    assert metrics["recorded"] == 1.0


def test_the_first_named_is_called_first_and_is_the_outermost_wrapper() -> None:
    calls: list[str] = []
    trainer(Recorder(calls, "a "), Recorder(calls, "b "), epochs=1, batch_size=64).fit()
    hooks = ["on_check", "on_structure", "on_init", "before", "after", "on_epoch_end", "on_structure ending"]
    expected = [f"{name} {hook}" for hook in hooks for name in ("ba" if hook == "after" else "ab")]
    assert calls == expected


def test_loading_runs_in_reverse_order_and_attaching_forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    write(Artifact({}, {"a": {}, "b": {"k": [1]}}), tmp_path / "x.safetensors")
    monkeypatch.setattr("makeweight.files.artifact.installed", lambda: {"a": None, "b": None})
    for reader in ("files.artifact", "loading"):
        monkeypatch.setattr(f"makeweight.{reader}.load_class", lambda name: lambda: Recorder(calls, f"{name} "))
    artifact = read(tmp_path / "x.safetensors")
    assert artifact.metadata == {"a": {}, "b": {"k": [1]}}
    attach(decode(artifact, "x"), nn.Linear(1, 2), "x")
    assert calls == ["b on_load", "a on_load", "a on_attach", "b on_attach"]


def test_a_plain_on_batch_replaces_the_step_and_wrappers_still_run() -> None:
    @dataclass(eq=False)
    class Still:
        steps: int = 0

        @hookimpl
        def on_batch(self, trainer: Trainer, batches: list[Any]) -> torch.Tensor:
            self.steps += 1
            return torch.zeros(())

    calls: list[str] = []
    still = Still()
    run = trainer(still, Recorder(calls))
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.fit()
    assert still.steps == 4
    assert calls.count("after") == 4
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.state_dict().items())


def test_a_plugin_may_stop_a_stage_after_an_epoch() -> None:
    @dataclass(eq=False)
    class Stop:
        epochs: list[int] = field(default_factory=list)

        @hookimpl
        def on_epoch_end(self, trainer: Trainer) -> None:
            self.epochs.append(trainer.epoch)
            trainer.stop("enough")

    stop = Stop()
    run = trainer(stop, epochs=5)
    run.fit()
    assert stop.epochs == [1]
    assert run.step == 2


def test_random_numbers_of_one_plugin_do_not_move_those_of_another() -> None:
    @dataclass(eq=False)
    class Draw:
        amount: int
        drawn: list[float] = field(default_factory=list)

        @hookimpl
        def on_init(self, trainer: Trainer) -> None:
            self.drawn = torch.rand(self.amount).tolist()

    first, second = Draw(1), Draw(1)
    trainer(first, second).set_up()
    longer, again = Draw(100), Draw(1)
    trainer(longer, again).set_up()
    assert second.drawn == again.drawn
    assert first.drawn != second.drawn


def test_auxiliary_modules_are_trained_but_no_part_of_the_model(tmp_path: Path) -> None:
    @dataclass(eq=False)
    class Scale:
        @hookimpl
        def on_init(self, trainer: Trainer) -> None:
            head = trainer.add_auxiliary("head", nn.Linear(10, 1))
            trainer.losses["head"] = lambda batch, output: head(output.detach()).square().mean()

    run = trainer(Scale(), lr=0.1)
    run.set_up()
    before = run.auxiliary.get_parameter("head.weight").detach().clone()
    run.fit()
    assert not torch.equal(before, run.auxiliary.get_parameter("head.weight"))
    artifact = run.export(tmp_path / "model.safetensors")
    assert artifact is not None
    assert set(artifact.tensors) == set(LeNet300((1, 4, 4), 10).state_dict())
    assert set(run.layers()) == {"fc1", "fc2", "fc3"}


def test_parametrizations_are_realised_and_ties_written_once() -> None:
    class Halved(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / 2

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    model = Tied()
    state = exported_state(model)
    assert list(state) == ["a.weight", "a.bias", "b.bias"]
    other = Tied()
    restore(other, state, "x")
    assert torch.equal(other.b.weight, model.a.weight)
    plain = nn.Sequential(nn.Linear(3, 2))
    weight = plain.get_parameter("0.weight").detach().clone()
    parametrize.register_parametrization(plain[0], "weight", Halved())
    assert set(exported_state(plain)) == {"0.weight", "0.bias"}
    assert torch.equal(exported_state(plain)["0.weight"], weight / 2)
