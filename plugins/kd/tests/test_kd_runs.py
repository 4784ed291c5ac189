"""Real runs with everything on: two processes, stages, resume, prune and huffman, and `trainer evaluate`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from makeweight import load_tensors
from makeweight.commands.cli import main
from makeweight.testing import free_port, run_trainer

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


def test_self_distillation_and_the_initial_teacher_run_in_two_processes(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["processes"] == 2
    assert summary["steps"] == 4
    assert summary["export"]["accuracy"] == summary["accuracy"]
    first, second = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    terms = [{name for name in line if name.startswith("train_kd")} for line in (first, second)]
    assert terms == [{"train_kd_labels", "train_kd", "train_kd_features"},
                     {"train_kd", "train_kd_attention", "train_kd_hints"}]  # fmt: skip
    assert first["train_kd_labels"] > 0
    assert second["train_kd_attention"] > 0
    assert second["train_kd_hints"] > 0
    tensors = load_tensors(run / "model.safetensors")
    assert (tensors["layer3.0.conv1.weight"] == 0).float().mean() == pytest.approx(0.5, abs=1e-3)
    assert {name.split(".")[1] for name in tensors if name.startswith("kd.")} == {"exit1", "exit2"}


def test_the_initial_teacher_survives_a_resume_in_two_processes(run: Path, tmp_path: Path) -> None:
    """Killed after the second stage's first step, the run ends with the same bits as the uninterrupted one."""
    broken = shutil.copytree(run, tmp_path / "run")
    third, fourth = sorted((broken / "checkpoints").iterdir())
    assert third.name == "step-000000003-stage-001"
    shutil.rmtree(fourth)
    for name in ("model.safetensors", "summary.json", "report.html"):
        (broken / name).unlink()
    run_trainer(["--out", "run", "--resume"], tmp_path, processes=2)
    assert json.loads((broken / "summary.json").read_text())["processes"] == 2
    whole, again = (load_tensors(each / "model.safetensors") for each in (run, broken))
    assert list(whole) == list(again)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_evaluate_shows_each_exit_the_ensemble_and_early_exit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_asking_for_exits_of_a_file_without_exits_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--epochs", "1", "--batch-size", "646", "--plugins", "kd", "--out", "plain"]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["evaluate", "plain/model.safetensors", "--no-latency", "--kd.exits", "all"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "kd.exits all: the file has no exits: export it with --kd.exits all" in error


SCRIPT = """
import hashlib, json, os
from dataclasses import dataclass, field
import torch
from makeweight import LoopOptions, Run, Stage, hookimpl
from makeweight_kd import Distillation

@dataclass(eq=False)
class Seen:
    state: dict = field(default_factory=dict)

    @hookimpl
    def on_epoch_end(self, trainer, metrics):
        modules = {"model": trainer.model, "auxiliary": trainer.auxiliary}
        self.state = {name: digests(module.named_parameters()) for name, module in modules.items()}

def digests(tensors):
    return {name: hashlib.sha256(each.detach().contiguous().numpy().tobytes()).hexdigest() for name, each in tensors}

rank = int(os.environ["RANK"])
torch.manual_seed(rank)  # ranks begin with other weights, and have other data
model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=1),
    torch.nn.MaxPool2d(2), torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
    torch.nn.Flatten(), torch.nn.Linear(16, 4))
data = torch.randn(96, 1, 8, 8), torch.randint(0, 4, (96,))
options = LoopOptions(epochs=2, batch_size=16, lr=0.05)
plugins = [Distillation(exits="all"), Distillation(teacher="initial", exits="all", attention=100.0, hints=1.0)]
seen = [Seen(), Seen()]
run = Run(model, data, None, [Stage(options, {"kd": each, "seen": look}) for each, look in zip(plugins, seen)])
metrics = run.fit()
result = {"processes": run.accelerator.num_processes, "stages": [each.state for each in seen], "metrics": metrics,
          "data": digests([("x", data[0])]),
          "teacher": digests(plugins[1].method.models["initial"].named_parameters())}
run.export("out.safetensors")
with open(f"rank{rank}.json", "w") as file:
    json.dump(result, file)
run.accelerator.wait_for_everyone()
os._exit(0)  # as `trainer` ends
"""


def test_two_processes_with_data_of_their_own_end_every_stage_with_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [sys.executable, *launch, "--main_process_port", str(free_port()), "script.py"]
    variables = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    zero, one = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert zero["processes"] == one["processes"] == 2
    assert zero["metrics"]["train_kd_hints"] == one["metrics"]["train_kd_hints"] > 0
    assert zero["data"] != one["data"]
    assert zero["stages"] == one["stages"]
    first, second = zero["stages"]
    heads = {name for name in first["auxiliary"] if name.startswith("kd.")}
    assert len(heads) > 0
    assert all(second["auxiliary"][name] == first["auxiliary"][name] for name in heads)  # frozen
    assert zero["teacher"] == one["teacher"] == first["model"]
    assert any(first["model"][name] != second["model"][name] for name in first["model"])
    assert any(name.startswith("kd.exit1.") for name in load_tensors(tmp_path / "out.safetensors"))
