"""Real runs with everything on: two processes, stages, resume, prune and huffman, and `trainer evaluate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from makeweight import load_tensors
from makeweight.cli import main
from makeweight.testing import run_trainer

RECIPE = """
model: resnet20
data: digits
batch-size: 646
plugins: [prune, kd, huffman]
prune: {sparsity: 0.5, layers: "layer*", schedule: one-shot}
kd: {exits: all, sections: [layer1, layer2], confidence: [0.2, 0.5]}
stages:
- {epochs: 1, prune: {sparsity: 0}}
- {epochs: 1, kd: {teacher: initial, attention: 1000, hints: 0.1}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.yaml").write_text(RECIPE)
    words = ["--recipe", "recipe.yaml", "--checkpoint-every", "1", "--out", "run"]
    run_trainer(words, folder, processes=2)
    return folder / "run"


def test_stages_with_themselves_and_with_what_they_were_as_teachers_run_in_two_processes(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["processes"] == 2
    assert summary["steps"] == 4
    assert summary["export"]["accuracy"] == summary["accuracy"]
    first, second = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert first["train_kd_labels"] > 0 == first["train_kd_attention"] == first["train_kd_hints"]
    assert second["train_kd_labels"] == 0 < second["train_kd_attention"]
    assert second["train_kd_hints"] > 0
    tensors = load_tensors(run / "model.safetensors")
    assert (tensors["layer3.0.conv1.weight"] == 0).float().mean() == pytest.approx(0.5, abs=1e-3)
    assert {name.split(".")[1] for name in tensors if name.startswith("kd.")} == {"exit1", "exit2"}


def test_the_initial_teacher_survives_a_resume_in_two_processes(run: Path, tmp_path: Path) -> None:
    """Killed after the second stage's first step, it ends with the bits of the unbroken run."""
    broken = shutil.copytree(run, tmp_path / "run")
    third, fourth = sorted((broken / "checkpoints").iterdir())
    assert third.name == "step-000000003"
    shutil.rmtree(fourth)
    for name in ("model.safetensors", "summary.json", "report.html"):
        (broken / name).unlink()
    run_trainer(["--out", "run", "--resume"], tmp_path, processes=2)
    assert json.loads((broken / "summary.json").read_text())["processes"] == 2
    whole, again = (load_tensors(each / "model.safetensors") for each in (run, broken))
    assert list(whole) == list(again)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_evaluate_shows_each_exit_the_ensemble_and_stopping_early(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run / "model.safetensors"), "--no-latency"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {name: next(line for line in lines if line.strip().startswith(name)) for name in (
        "model.safetensors", "exit 1", "exit 2", "ensemble", "confidence 0.2", "confidence 0.5")}  # fmt: skip
    cost = {name: int(line.split()[-1].replace(",", "")) for name, line in rows.items()}
    assert cost["exit 1"] < cost["exit 2"] < cost["model.safetensors"] < cost["ensemble"]
    assert cost["exit 1"] <= cost["confidence 0.2"] <= cost["confidence 0.5"] <= cost["ensemble"]
    assert all("%" in line for line in rows.values())
    assert main(["evaluate", str(run / "model.safetensors"), "--no-latency", "--kd.confidence", "0.3"]) == 0
    assert "confidence 0.3" in capsys.readouterr().out


def test_exits_of_a_file_without_them_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--epochs", "1", "--batch-size", "646", "--plugins", "kd", "--out", "plain"]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["evaluate", "plain/model.safetensors", "--no-latency", "--kd.exits", "all"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "kd.exits all: the file was exported without exits: --kd.exits all keeps them" in error
