"""model.onnx and model.pt2 of a run: they compute what the trained model does, for any batch size."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from makeweight import MakeweightError, Trainer, hookimpl, hookspecs
from makeweight.files.programs import program, write_programs
from makeweight.models.lenets import LeNet300

from .helpers import here, summary

onnxruntime = pytest.importorskip("onnxruntime")


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


class Normed(nn.Module):
    """Dropout, batch norm, and an output that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * 36, 10)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.fc(self.dropout(self.norm(self.conv(x)).flatten(1)))}


@dataclass(eq=False)
class Halve:
    """A plugin that lets the first Linear layer compute with half of its weight."""

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        layer = next(each for each in trainer.layers().values() if isinstance(each, nn.Linear))
        parametrize.register_parametrization(layer, "weight", Halved())


def trained(model: nn.Module, *plugins: object) -> Trainer:
    data = (torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,)))
    run = Trainer(model, data, plugins=plugins, epochs=1, batch_size=16)
    run.journal.console.quiet = True
    run.fit()
    return run


def onnx_output(path: Path, x: torch.Tensor) -> Any:
    session = onnxruntime.InferenceSession(path)
    assert [each.name for each in session.get_inputs()] == ["input"]
    assert [each.name for each in session.get_outputs()] == ["logits"]
    return session.run(None, {"input": x.numpy()})[0]


@pytest.mark.parametrize("make", [lambda: LeNet300((1, 8, 8), 10), Normed])
def test_programs_compute_what_the_model_does_for_any_batch(make: Any, tmp_path: Path) -> None:
    run = trained(make(), Halve())
    assert any(parametrize.is_parametrized(module) for module in run.model.modules())
    sizes = write_programs(run, ["safetensors", "onnx", "pt2"], tmp_path)
    assert sizes == {name: (tmp_path / name).stat().st_size for name in ("model.onnx", "model.pt2")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.pt2"]
    assert run.model.training
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 3, 50):
        x = torch.randn(count, 1, 8, 8)
        with torch.no_grad():
            output = run.model.eval()(x)
            expected = output["logits"] if isinstance(output, dict) else output
            assert torch.allclose(loaded(x), expected, atol=1e-5)
        assert np.allclose(onnx_output(tmp_path / "model.onnx", x), expected.numpy(), atol=1e-5)


def test_the_copy_that_is_exported_leaves_the_model_as_it_is() -> None:
    run = trained(LeNet300((1, 8, 8), 10))
    parametrize.register_parametrization(run.model.fc1, "weight", Halved())  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    copied = program(run)
    assert not any(parametrize.is_parametrized(module) for module in copied.modules())
    assert torch.equal(copied.get_parameter("fc1.weight"), run.model.fc1.weight)  # type: ignore[arg-type,union-attr]
    assert parametrize.is_parametrized(run.model.fc1)  # type: ignore[arg-type]
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.state_dict().items())


def test_a_model_that_torch_cannot_export_is_told_so_in_one_line(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)
            result: torch.Tensor = self.fc(x) if x.sum() > 0 else self.fc(-x)
            return result

    run = trained(Branching())
    with pytest.raises(
        MakeweightError, match=r"model.pt2 cannot be written, torch does not export this model: [^\n]+$"
    ):
        write_programs(run, ["pt2"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_writes_them_and_says_how_large_they_are(tmp_path: Path) -> None:
    words = ["--epochs", 1, "--export", "safetensors,onnx,pt2", "--out", tmp_path / "run"]
    assert here(*words) == 0
    programs = summary(tmp_path / "run")["export"]["programs"]
    assert programs == {name: (tmp_path / "run" / name).stat().st_size for name in ("model.onnx", "model.pt2")}


def test_what_is_missing_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(name: str, package: str | None = None) -> Any:
        return None if name == "onnxscript" else importlib.util.find_spec(name, package)

    monkeypatch.setattr("makeweight.files.programs.find_spec", find)
    assert here("--export", "onnx", "--out", tmp_path / "run") == 2
    assert "export onnx: needs onnxscript: pip install 'makeweight[onnx]'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_an_unknown_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("--export", "onx", "--out", tmp_path / "run") == 2
    assert "export onx: expected one or more of safetensors, onnx, pt2" in " ".join(capsys.readouterr().err.split())
    assert hasattr(hookspecs, "on_program")
