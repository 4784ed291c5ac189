"""The command line, recipes and verbs: what can be said, and that it does what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from makeweight import load_tensors
from makeweight.commands.arguments import parse

from .helpers import assert_same_bits, assert_same_run, epochs, everything_below, here, summary

FAST = 0.5
"""seconds in which the commands that need no torch answer"""
TRAINER = Path(sys.executable).parent / "trainer"


def printed(words: list[str]) -> str:
    """What `trainer` prints in a process of its own."""
    return subprocess.run([str(TRAINER), *words], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("words", [["--help"], ["plugins"], ["--plugins", "prune,kd,huffman", "--help"]])
def test_help_and_the_list_of_plugins_take_under_half_a_second_and_import_no_torch(words: list[str]) -> None:
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        printed(words)
        taken.append(time.perf_counter() - begun)
    assert min(taken) < FAST
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", str(TRAINER), *words], capture_output=True, text=True, check=True
    ).stderr
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in imported.splitlines()}
    assert "makeweight" in modules
    assert modules & {"torch", "torchvision", "accelerate", "numba", "sklearn", "matplotlib", "timm"} == set()


def test_help_shows_every_option_of_the_issue() -> None:
    shown = printed(["--help"])
    options = (
        "recipe plugins model data data-dir image-size augment weights epochs batch-size accumulate workers "
        "seed precision optimizer lr momentum weight-decay schedule warmup clip-norm validation out resume "
        "checkpoint-every dry-run tracker criterion forward metric stages"
    )
    assert [option for option in options.split() if f"--{option} " not in shown] == []
    values = "sgd adamw constant step cosine tensorboard no bf16 fp16 lenet300 lenet5 timm:NAME digits imagefolder:DIR"
    assert [
        value for value in [*values.split(), "package.module:function"] if value not in shown.replace("\n", " ")
    ] == []


def test_help_shows_the_options_of_the_plugins_that_are_named_and_of_no_other() -> None:
    shown = printed(["--plugins", "prune", "--help"])
    for option in ("sparsity", "layers", "scope", "schedule", "begin", "end"):
        assert f"--prune.{option} " in shown
    assert "--kd." not in shown
    assert "--kd.teacher " in printed(["--plugins=kd", "--help"])


def test_the_list_of_plugins_names_each_its_distribution_and_its_verbs() -> None:
    shown = printed(["plugins"])
    for name in ("prune", "kd", "huffman"):
        assert re.search(rf"^\s*{name}\s+makeweight-{name} \d", shown, re.MULTILINE), shown
    assert re.search(r"huffman.*pack.*unpack", shown)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on digits with every plugin."""
    out = tmp_path_factory.mktemp("command") / "run"
    torch.set_num_threads(1)
    words = [
        "--plugins",
        "prune,kd,huffman",
        "--epochs",
        "3",
        "--batch-size",
        "64",
        "--seed",
        "5",
        "--augment",
        "shift",
    ]
    assert here(*words, "--lr", "1e-1", "--prune.sparsity", '{"*": 0.5, "fc1": 0.9}', "--out", out) == 0
    return out


def test_a_dry_run_says_what_each_plugin_would_touch_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--plugins", "prune,kd,huffman", "--prune.sparsity", '{"fc*": 0.5, "fc2": 0.25}', "--dry-run"]
    for more in ([], ["--out", "run"]):
        assert here(*words, *more) == 0
        shown = capsys.readouterr().out
        assert "50,610 parameters" in shown
        assert "10 epochs, 100 steps" in shown
        prune = next(line for line in shown.splitlines() if line.startswith("prune:"))
        for part in ("fc1 0.5", "fc2 0.25", "fc3 0.5", "50,200 weights"):
            assert part in prune
        kd = next(line for line in shown.splitlines() if line.startswith("kd:"))
        assert "fc1" in kd
        assert "fc2" in kd
        assert "fc3" not in kd
        assert any(line.startswith("huffman:") for line in shown.splitlines())
        assert everything_below(tmp_path) == []


@pytest.mark.slow  # whole runs
def test_the_configuration_of_a_run_repeats_it_exactly(run: Path, tmp_path: Path) -> None:
    assert here("--recipe", run / "config.yaml", "--out", tmp_path / "again") == 0
    assert_same_run(run, tmp_path / "again")
    assert (run / "config.yaml").read_text() == (tmp_path / "again" / "config.yaml").read_text()
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()


def test_another_seed_is_another_run(run: Path, tmp_path: Path) -> None:
    assert here("--recipe", run / "config.yaml", "--seed", 6, "--out", tmp_path / "other") == 0
    assert epochs(run)[0]["loss"] != epochs(tmp_path / "other")[0]["loss"]


def test_the_last_glob_that_matches_sets_the_sparsity(run: Path) -> None:
    found = {
        name: float((tensor == 0).double().mean())
        for name, tensor in load_tensors(run / "model.safetensors").items()
        if name.endswith("weight")
    }
    assert found == pytest.approx({"fc1.weight": 0.9, "fc2.weight": 0.5, "fc3.weight": 0.5}, abs=1e-4)


RECIPE = """
plugins: [prune, kd]
model: lenet300
batch-size: 64   # dashes
weight_decay: 1e-3
lr: 1e-2
precision: no
seed: 010
prune:
  sparsity:
    "*": 0.5
    fc_2-x: 0.25
  begin: 1e-1
kd: {feature-weight: 1e-4}
stages:
  - epochs: 2
    lr: 5e-3
    kd: {weight: 0}
  - epochs: 1
    optimizer: adamw
    prune: {sparsity: 0.75}
"""


def test_a_recipe_is_read_as_yaml_1_2(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    read = parse(["--recipe", str(tmp_path / "mine.yaml")])
    options = read.options
    assert (options.batch_size, options.weight_decay, options.lr) == (64, 0.001, 0.01)
    assert options.precision == "no"
    assert options.seed == 10
    assert list(read.plugins) == ["prune", "kd"]
    assert read.plugins["prune"].sparsity == {"*": 0.5, "fc_2-x": 0.25}
    assert read.plugins["prune"].begin == 0.1
    assert read.plugins["kd"].feature_weight == 1e-4
    assert read.name == "mine"
    first, second = read.stages
    assert (first.options.epochs, first.options.optimizer, first.options.lr) == (2, "sgd", 0.005)
    assert (second.options.epochs, second.options.optimizer, second.options.lr) == (1, "adamw", 0.01)
    assert first.plugins["prune"].sparsity == {"*": 0.5, "fc_2-x": 0.25}
    assert second.plugins["prune"].sparsity == 0.75
    assert (first.plugins["kd"].weight, second.plugins["kd"].weight) == (0.0, 1.0)


def test_the_command_line_overrides_every_value_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    read = parse([
        "--recipe", str(tmp_path / "mine.yaml"), "--plugins", "kd,prune,huffman", "--lr=1e-3", "--batch-size", "32",
        "--weight_decay", "0", "--prune.sparsity", "0.125", "--kd.feature-weight=2e-2", "--stages.1.epochs", "7",
        "--stages.1.prune.sparsity", "0.625", "--out", "x", "--resume", "--dry-run=false",
    ])  # fmt: skip
    assert list(read.plugins) == ["kd", "prune", "huffman"]
    assert (read.options.lr, read.options.batch_size, read.options.weight_decay) == (0.001, 32, 0.0)
    assert (read.options.out, read.options.resume, read.options.dry_run) == ("x", True, False)
    assert read.plugins["prune"].sparsity == 0.125
    assert read.plugins["prune"].begin == 0.1
    assert read.plugins["kd"].feature_weight == 0.02
    assert [stage.options.epochs for stage in read.stages] == [2, 7]
    assert [stage.plugins["prune"].sparsity for stage in read.stages] == [0.125, 0.625]


@pytest.mark.slow  # a run of several stages
def test_stages_are_run_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "plugins: [prune]\nstages:\n- {epochs: 1, schedule: constant, lr: 0.01, prune: {sparsity: 0.5}}\n"
        "- {epochs: 2, optimizer: adamw, lr: 1e-3, schedule: constant, prune: {sparsity: 0.8}}\n"
    )
    assert here("--recipe", tmp_path / "mine.yaml", "--out", tmp_path / "run") == 0
    lines = epochs(tmp_path / "run")
    assert [(line["stage"], line["epoch"], line["step"]) for line in lines] == [(0, 1, 10), (1, 1, 20), (1, 2, 30)]
    assert [line["lr"] for line in lines] == [0.01, 0.001, 0.001]
    assert [line["sparsity"] for line in lines] == pytest.approx([0.5, 0.8 - 0.3 / 64, 0.8], abs=0.03)
    assert lines[0]["sparsity"] == pytest.approx(0.5, abs=1e-4)
    assert lines[2]["sparsity"] == pytest.approx(0.8, abs=1e-4)
    assert here("--recipe", tmp_path / "run" / "config.yaml", "--out", tmp_path / "again") == 0
    assert_same_run(tmp_path / "run", tmp_path / "again")


def test_the_run_directory_is_named_after_the_recipe_or_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text("epochs: 1\n")
    assert here("--recipe", "small.yaml") == 0
    assert here("--epochs", 1) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert [name.partition("-")[0] for name in names] == ["lenet300", "small"]


def test_accumulated_batches_train_as_whole_ones(tmp_path: Path) -> None:
    for times in (1, 4):
        assert here("--epochs", 2, "--accumulate", times, "--out", tmp_path / str(times)) == 0
    assert summary(tmp_path / "1")["steps"] == summary(tmp_path / "4")["steps"] == 20
    whole, parts = (load_tensors(tmp_path / times / "model.safetensors") for times in ("1", "4"))
    for name, tensor in whole.items():
        assert torch.allclose(tensor, parts[name], rtol=1e-4, atol=1e-6), name
    for line, other in zip(epochs(tmp_path / "1"), epochs(tmp_path / "4"), strict=True):
        assert line == pytest.approx(other, rel=1e-4)


@pytest.mark.slow  # bfloat16 is slow without hardware for it
def test_mixed_precision_trains_close_to_full_and_logs_float32(tmp_path: Path) -> None:
    for precision in ("no", "bf16"):
        words = ["--epochs", 3, "--batch-size", 64, "--plugins", "prune,kd", "--precision", precision]
        assert here(*words, "--out", tmp_path / precision) == 0
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
    full, mixed = (summary(tmp_path / precision) for precision in ("no", "bf16"))
    assert epochs(tmp_path / "no")[0]["train_task"] != epochs(tmp_path / "bf16")[0]["train_task"]
    assert mixed["accuracy"] == pytest.approx(full["accuracy"], abs=0.05)
    assert {tensor.dtype for tensor in load_tensors(tmp_path / "bf16" / "model.safetensors").values()} == {
        torch.float32
    }
    assert mixed["export"]["accuracy"] == mixed["accuracy"]


def test_warm_up_steps_and_clipping_do_what_they_say(tmp_path: Path) -> None:
    words = ["--epochs", 4, "--schedule", "step", "--milestones", "[2, 3]", "--gamma", "0.1", "--lr", "1e-1",
             "--warmup", "1", "--clip-norm", "0.001", "--validation", "0", "--batch-size", "359"]  # fmt: skip
    assert here(*words, "--out", tmp_path / "run") == 0
    lines = epochs(tmp_path / "run")
    assert [line["lr"] for line in lines] == pytest.approx([0.075, 0.1, 0.01, 0.001])  # of each epoch's last step
    assert [line["step"] for line in lines] == [4, 8, 12, 16]
    assert all("accuracy" not in line for line in lines)  # nothing is held out
    assert summary(tmp_path / "run")["accuracy"] is not None


def test_a_tracker_gets_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    assert here("--epochs", 1, "--tracker", "tensorboard", "--out", tmp_path / "run") == 0
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


TASK = """
import torch
from torch.nn.functional import cross_entropy

def smooth(output, target):
    return cross_entropy(output, target, label_smoothing=0.2)

def flipped(model, batch):
    return -model(batch[0])

def confidence(output, target):
    return output.softmax(1).gather(1, target[:, None])[:, 0]

class Output(dict):
    # as Hugging Face's: a mapping with attributes
    __getattr__ = dict.__getitem__

class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = torch.nn.Linear(64, 32), torch.nn.Linear(32, 10)

    def forward(self, pixels, labels=None):
        logits = self.out(self.embed(pixels).relu())
        return Output(logits=logits, loss=None if labels is None else cross_entropy(logits, labels))

class Plain:
    def __init__(self, logits, loss):
        self.logits, self.loss = logits, loss

class Attributes(Classifier):
    def forward(self, pixels, labels=None):
        return Plain(**super().forward(pixels, labels))

def data():
    from sklearn.datasets import load_digits
    digits = load_digits()
    x, y = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target).long()
    return ({"pixels": x[:1500], "labels": y[:1500]}, {"pixels": x[1500:], "labels": y[1500:]})

class Items(torch.utils.data.Dataset):
    def __init__(self, columns):
        self.columns = columns
    def __len__(self):
        return len(self.columns["labels"])
    def __getitem__(self, index):
        return {name: column[index] for name, column in self.columns.items()}

def items():
    train, test = data()
    return Items(train), Items(test)
"""


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow  # its report draws pictures
def test_criterion_call_and_metric_are_the_users_to_replace(cwd: Path) -> None:
    words = ["--epochs", 2, "--criterion", "my_task:smooth", "--forward", "my_task:flipped",
             "--metric", "my_task:confidence", "--plugins", "prune,kd"]  # fmt: skip
    assert here(*words, "--out", "run") == 0
    found = summary(cwd / "run")
    assert 0.1 < found["confidence"] < 1
    assert "accuracy" not in found
    assert found["export"]["confidence"] == found["confidence"]
    line = epochs(cwd / "run")[1]
    assert {"confidence", "train_task", "train_kd", "loss"} <= set(line)
    assert here("report", "run") == 0
    assert here("evaluate", "run/model.safetensors", "--recipe", "run/config.yaml") == 0


def test_a_loss_class_of_torch_is_a_criterion(cwd: Path) -> None:
    assert here("--epochs", 1, "--criterion", "torch.nn:CrossEntropyLoss", "--out", "named") == 0
    assert here("--epochs", 1, "--out", "usual") == 0
    assert_same_run(cwd / "named", cwd / "usual")


@pytest.mark.parametrize(("model", "data"), [("Classifier", "data"), ("Attributes", "items")])
def test_batches_that_are_mappings_train_models_that_return_their_loss(model: str, data: str, cwd: Path) -> None:
    words = ["--epochs", 4, "--lr", "0.2", "--batch-size", 64, "--plugins", "prune,kd,huffman",
             "--model", f"my_task:{model}", "--data", f"my_task:{data}"]  # fmt: skip
    assert here(*words, "--out", "run") == 0
    found = summary(cwd / "run")
    assert found["accuracy"] > 0.7
    assert found["export"]["accuracy"] == found["accuracy"]
    assert set(load_tensors(cwd / "run" / "model.safetensors")) == {
        "embed.weight", "embed.bias", "out.weight", "out.bias",
    }  # fmt: skip


# The verbs.


def test_inspect_shows_the_tensors_of_an_export_and_of_any_safetensors_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here("inspect", run / "model.safetensors") == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.strip().startswith("fc1.weight"))
    assert "300x64" in row
    assert "10.00 %" in row
    assert f"{(run / 'model.safetensors').stat().st_size:,} bytes, 6 tensors, written with huffman" in shown
    save_file({"half": torch.tensor([1.0, 2.0, 2.0, 0.0], dtype=torch.bfloat16)}, tmp_path / "any.safetensors")
    assert here("inspect", tmp_path / "any.safetensors") == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("half"))
    assert row.split()[1:7] == ["4", "bfloat16", "75.00", "%", "3", "1.50"]


def test_evaluate_measures_what_the_summary_says(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("evaluate", run / "model.safetensors") == 0
    shown = capsys.readouterr().out
    header, row = (next(line for line in shown.splitlines() if line.split()[:1] == [word])
                   for word in ("model", "model.safetensors"))  # fmt: skip
    assert header.split() == ["model", "accuracy", "loss", "MACs", "ms", "(1)", "faster", "ms", "(32)", "faster"]
    assert all(len(line.rstrip()) <= 80 for line in shown.splitlines())
    assert f" {100 * summary(run)['accuracy']:.2f} % " in row
    assert f" {64 * 300 + 300 * 100 + 100 * 10:,} " in row
    assert f"360 examples, {summary(run)['export']['bytes']:,} bytes" in shown


def test_evaluate_takes_a_file_from_elsewhere_with_its_model_and_data_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "model.safetensors", tmp_path / "moved.safetensors")
    moved = [tmp_path / "moved.safetensors", "--model", "lenet300", "--data=digits", "--no-latency"]
    assert here("evaluate", *moved) == 0
    shown = capsys.readouterr().out
    assert f" {100 * summary(run)['accuracy']:.2f} % " in shown
    assert "ms (" not in shown


def test_evaluate_runs_no_code_that_only_the_file_beside_an_export_names(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(run / "model.safetensors", tmp_path)
    (tmp_path / "my_evil.py").write_text("open('exploded', 'w')\ndef build(): ...\n")
    for key in ("model", "data", "criterion", "forward", "metric"):
        (tmp_path / "config.yaml").write_text(f"{key}: my_evil:build\n")
        assert here("evaluate", "model.safetensors") == 2
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1
        assert "--recipe" in shown
    assert not (tmp_path / "exploded").exists()


def test_report_writes_the_report_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = shutil.copytree(run, tmp_path / "run")
    (again / "report.html").unlink()
    assert here("report", again) == 0
    assert f"{summary(run)['export']['bytes']:,}" in capsys.readouterr().out
    text = (again / "report.html").read_text()
    assert "fc1.weight" in text
    assert "<svg" in text or "data:image/svg+xml;base64," in text


TENSORS: dict[str, Any] = {
    "bf16": lambda g: torch.randn(64, 32, generator=g).bfloat16(),
    "half": lambda g: torch.randn(100, generator=g).half(),
    "sparse": lambda g: torch.where(torch.rand(300, 200, generator=g) < 0.9, 0, torch.randn(300, 200, generator=g)),
    "nan": lambda g: torch.tensor([float("nan"), float("inf"), -0.0, 0.0, 1e-45]),
    "counts": lambda g: torch.randint(-5, 5, (77,), generator=g),
    "bytes": lambda g: torch.randint(0, 255, (1000,), generator=g).to(torch.uint8),
    "flags": lambda g: torch.rand(33, generator=g) < 0.5,
    "scalar": lambda g: torch.tensor(3.5),
    "nothing": lambda g: torch.empty(0, 3),
}


def test_pack_and_unpack_give_a_file_back_bit_for_bit_with_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: make(generator) for name, make in TENSORS.items()}
    save_file(tensors, tmp_path / "any.safetensors", metadata={"format": "pt", "note": "ümlaut"})
    assert here("pack", "any.safetensors") == 0
    assert here("unpack", "any.huffman.safetensors") == 0
    assert here("unpack", "any.huffman.safetensors", "-o", "other.safetensors") == 0
    packed = dict(sorted(load_tensors(tmp_path / "any.huffman.safetensors").items()))
    assert_same_bits(packed, dict(sorted(tensors.items())))
    for name in ("any.dense.safetensors", "other.safetensors"):
        assert_same_bits(dict(sorted(load_file(tmp_path / name).items())), dict(sorted(tensors.items())))
        with safe_open(tmp_path / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt", "note": "ümlaut"}
    assert (tmp_path / "any.huffman.safetensors").stat().st_size < (tmp_path / "any.safetensors").stat().st_size / 2


def test_pack_and_unpack_overwrite_nothing_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.ones(1000)}, tmp_path / "any.safetensors")
    assert here("pack", "any.safetensors") == 0
    capsys.readouterr()
    assert here("pack", "any.safetensors") == 2
    assert "any.huffman.safetensors exists" in capsys.readouterr().err
    assert here("pack", "any.huffman.safetensors", "-o", "twice.safetensors") == 1
    assert "already packed" in capsys.readouterr().err


def test_an_export_is_unpacked_to_an_ordinary_file(run: Path, tmp_path: Path) -> None:
    assert here("unpack", run / "model.safetensors", "-o", tmp_path / "dense.safetensors") == 0
    assert_same_bits(load_file(tmp_path / "dense.safetensors"), load_tensors(run / "model.safetensors"))


def test_a_run_begins_from_the_weights_of_an_export_or_of_an_ordinary_file(run: Path, tmp_path: Path) -> None:
    assert here("unpack", run / "model.safetensors", "-o", tmp_path / "dense.safetensors") == 0
    for name, file in {"export": run / "model.safetensors", "ordinary": tmp_path / "dense.safetensors"}.items():
        words = ["--weights", file, "--lr", "1e-9", "--weight-decay", "0", "--epochs", "1", "--validation", "0"]
        assert here(*words, "--out", tmp_path / name) == 0
        assert summary(tmp_path / name)["accuracy"] == pytest.approx(summary(run)["accuracy"], abs=0.003)
    assert_same_run(tmp_path / "export", tmp_path / "ordinary")


def test_weights_of_another_model_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--weights", run / "model.safetensors", "--model", "lenet5", "--out", tmp_path / "run"]
    assert here(*words) in (1, 2)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "model.safetensors" in shown
    assert "conv1.weight" in shown
    assert everything_below(tmp_path) == []


def test_metrics_are_one_json_object_in_each_line(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60]
    for line in lines:
        assert {"epoch", "stage", "seconds", "lr", "accuracy", "loss", "sparsity", "train_task", "train_kd"} <= set(
            line
        )
        terms = [line[f"train_{name}"] for name in ("task", "kd_labels", "kd", "kd_features")]
        assert line["train_loss"] == pytest.approx(sum(terms))


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["--nonsense", "1"], 2), (["--help"], 0)])
def test_a_process_of_several_ends_with_its_code_and_has_said_all(words: list[str], code: int) -> None:
    """As a launcher starts it: it ends before the interpreter is torn down."""
    command = [sys.executable, "-m", "makeweight", *words]
    ways = [os.environ, os.environ | {"LOCAL_RANK": "0"}]
    alone, launched = (subprocess.run(command, env=way, capture_output=True, text=True) for way in ways)
    assert (launched.returncode, launched.stdout, launched.stderr) == (code, alone.stdout, alone.stderr)
    assert launched.stdout or launched.stderr
