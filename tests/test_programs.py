"""model.onnx and model.pt2 of a run: they compute what the trained model does, for any batch size."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from makeweight import MakeweightError, Trainer, hookimpl, hookspecs
from makeweight.files.write_programs import program, strip, write_program
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
    assert [write_program(run, form, tmp_path) for form in ("onnx", "pt2")] == [
        tmp_path / "model.onnx", tmp_path / "model.pt2",
    ]  # fmt: skip
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
    run = trained(Branching())
    with pytest.raises(MakeweightError, match=r"model.pt2 cannot be written, torch cannot export this model: [^\n]+$"):
        write_program(run, "pt2", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # exports a model in each format
def test_a_run_measures_each_program_as_its_runtime_runs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--epochs", 1, "--export", "safetensors,onnx,pt2", "--out", tmp_path / "run"]
    assert here(*words) == 0
    found = summary(tmp_path / "run")
    programs = found["export"]["programs"]
    assert list(programs) == ["model.onnx", "model.pt2"]
    for name, facts in programs.items():
        assert facts["bytes"] == (tmp_path / "run" / name).stat().st_size
        assert facts["accuracy"] == pytest.approx(found["accuracy"], abs=0.003)  # of 360 digits at most one differs
        assert facts["loss"] == pytest.approx(found["loss"], rel=1e-4)
        assert facts["agreement"] >= 359 / 360
        assert facts["milliseconds"] > 0
        assert facts["times_as_fast"] > 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line for line in shown.splitlines() if line.split()}
    assert "agreement" in rows["file"]
    assert f"{programs['model.onnx']['bytes']:,}" in rows["model.onnx"]
    assert all(len(line.rstrip()) <= 80 for line in rows.values() if line.split()[0] in ("file", *programs))
    assert here("report", tmp_path / "run") == 0
    assert f"{programs['model.pt2']['bytes']:,}" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def texts(message: Any) -> Iterator[str]:
    """Every text in a protobuf message, whatever field it stands in."""
    for field, value in message.ListFields():
        for each in value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]:
            if isinstance(each, str):
                yield each
            elif field.message_type is not None:
                yield from texts(each)


@pytest.mark.parametrize("make", [lambda: LeNet300((1, 8, 8), 10), Normed])
def test_an_onnx_file_holds_no_traces_and_no_paths(make: Any, tmp_path: Path) -> None:
    model = onnx.load(write_program(trained(make(), Halve()), "onnx", tmp_path))
    found = list(texts(model))
    assert len(found) > 10
    assert "logits" in found
    assert [text for text in found if "/" in text or "Traceback" in text or "aten" in text or ".py" in text] == []


def test_metadata_is_stripped_from_graphs_inside_of_nodes_and_from_functions() -> None:
    inner = onnx.helper.make_node("Identity", ["x"], ["y"], doc_string="File 'a.py', line 1")
    value = onnx.helper.make_tensor_value_info
    branch = onnx.helper.make_graph([inner], "branch", [], [value("y", 1, [1])], doc_string="b.py")
    outer = onnx.helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    outer.metadata_props.add(key="stack_trace", value="c.py")
    graph = onnx.helper.make_graph([outer], "whole", [value("c", 9, [])], [value("z", 1, [1])])
    function = onnx.helper.make_function("own", "F", ["x"], ["y"], [inner], [onnx.helper.make_opsetid("", 20)])
    model = onnx.helper.make_model(graph, functions=[function], doc_string="d.py")
    strip(model)
    assert [text for text in texts(model) if ".py" in text] == []
    assert len(model.graph.node[0].attribute) == 2


class Branching(nn.Module):
    """Its forward depends on the values of its input, which torch.export refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        result: torch.Tensor = self.fc(x) if x.sum() > 0 else self.fc(-x)
        return result


BRANCHING = f"""
import torch
from torch import nn

{inspect.getsource(Branching)}
def model():
    return Branching()
"""


def test_a_model_that_cannot_be_exported_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "branching.py").write_text(BRANCHING)
    monkeypatch.chdir(tmp_path)
    assert here("--model", "branching:model", "--export", "pt2", "--out", tmp_path / "run") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("trainer: error: model.pt2 cannot be written, torch cannot export this model: ")
    assert said.endswith("; leave it out of --export")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_program_that_fails_after_training_costs_neither_the_export_nor_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(trainer: Any, form: str, out: Path) -> Path:
        raise MakeweightError(f"model.{form} cannot be written: no space")

    monkeypatch.setattr("makeweight.commands.finish.write_program", broken)
    assert here("--epochs", 1, "--export", "pt2", "--out", tmp_path / "run") == 1
    assert "model.pt2 cannot be written: no space" in capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").exists()
    assert "programs" not in summary(tmp_path / "run")["export"]


def test_what_is_missing_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(name: str, package: str | None = None) -> Any:
        return None if name == "onnxscript" else importlib.util.find_spec(name, package)

    monkeypatch.setattr("makeweight.files.write_programs.find_spec", find)
    assert here("--export", "onnx", "--out", tmp_path / "run") == 2
    assert "export onnx: needs onnxscript: pip install 'makeweight[onnx]'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_an_unknown_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("--export", "onx", "--out", tmp_path / "run") == 2
    assert "export onx: expected one or more of safetensors, onnx, pt2" in " ".join(capsys.readouterr().err.split())
    assert hasattr(hookspecs, "on_program")
