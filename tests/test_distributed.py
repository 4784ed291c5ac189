"""Two processes train as one does: the same masks, one set of outputs, the same accuracy, and exact resume."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from makeweight import MakeweightError, load_tensors
from makeweight.training import checkpoint
from makeweight.training.distributed import check_equal, from_first

from .helpers import (
    assert_same_run,
    begin_two_processes,
    epochs,
    everything_below,
    kill_all,
    launch,
    needs_mnist,
    summary,
    two_processes,
    wait_for,
)
from .helpers import trainer as one_process

MNIST = ["--plugins", "prune,kd,huffman", "--model", "lenet300", "--data", "mnist", "--epochs", "2",
         "--prune.sparsity", "0.9"]  # fmt: skip
FILES = ["checkpoints", "config.yaml", "metrics.jsonl", "model.safetensors", "report.html", "summary.json"]


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on MNIST by one process and by two."""
    folder = tmp_path_factory.mktemp("mnist")
    two_processes(folder, "-m", "makeweight", *MNIST, "--out", "two")
    one_process(folder, *MNIST, "--out", "one")
    return folder


@needs_mnist
def test_there_are_two_processes_and_one_set_of_outputs(mnist: Path) -> None:
    assert summary(mnist / "two")["processes"] == 2
    assert summary(mnist / "one")["processes"] == 1
    assert sorted(os.listdir(mnist / "two")) == FILES
    assert sorted(os.listdir(mnist)) == ["one", "two"]
    assert [line["epoch"] for line in epochs(mnist / "two")] == [1, 2]


@needs_mnist
def test_two_processes_take_as_many_steps_as_one_and_are_as_good(mnist: Path) -> None:
    one, two = summary(mnist / "one"), summary(mnist / "two")
    assert one["steps"] == two["steps"] == 2 * (54_000 // 128)
    assert one["accuracy"] > 0.95
    assert abs(one["accuracy"] - two["accuracy"]) <= 0.005
    assert two["export"]["accuracy"] == two["accuracy"]
    assert two["export"]["loss"] == pytest.approx(two["loss"], rel=1e-5)
    for key in ("train_task", "train_kd", "loss", "accuracy"):
        assert epochs(mnist / "two")[0][key] == pytest.approx(epochs(mnist / "one")[0][key], rel=0.05), key


@needs_mnist
def test_the_sparsity_is_there_after_two_processes(mnist: Path) -> None:
    weights = {k: v for k, v in load_tensors(mnist / "two" / "model.safetensors").items() if k.endswith("weight")}
    zeros, total = sum(int((w == 0).sum()) for w in weights.values()), sum(map(torch.numel, weights.values()))
    assert zeros / total == pytest.approx(0.9, abs=1e-4)


SCRIPT = """
import hashlib, json, os, sys
from dataclasses import dataclass, field
import torch
from makeweight import MakeweightError, Trainer, hookimpl
from makeweight.training.distributed import check_equal, from_first
from makeweight_kd import Distillation
from makeweight_prune import Prune

@dataclass(eq=False)
class Record:
    masks: list = field(default_factory=list)

    @hookimpl
    def on_epoch_end(self, trainer, metrics):
        prune = trainer.plugins.by_name["prune"]
        self.masks.append({name: digest(mask) for name, mask in prune.masks(trainer).items()})
        if trainer.accelerator.process_index == 1 and trainer.epoch == 3:
            trainer.stop("the second process asks to")

def digest(tensor):
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()

generator = torch.Generator().manual_seed(0)
x = torch.randn(100, 20, generator=generator)
y = (x[:, 0] > 0).long()
torch.manual_seed(int(os.environ["RANK"]))  # so that ranks begin with other weights
model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.BatchNorm1d(30), torch.nn.ReLU(), torch.nn.Dropout(0.2),
                            torch.nn.Linear(30, 2))
record = Record()
plugins = [Prune(sparsity=0.7, every=2, end=3), Distillation(), record]
trainer = Trainer(model, (x[:81], y[:81]), (x[81:], y[81:]), plugins=plugins, epochs=9, batch_size=16)
metrics = trainer.fit()
rank, accelerator = trainer.accelerator.process_index, trainer.accelerator
said = {}
for name, tensor in {"equal": torch.arange(3.0), "other": torch.arange(3.0) + rank,
                     "negative zero": torch.tensor([-0.0 if rank else 0.0])}.items():
    try:
        check_equal(accelerator, "masks", {"fc1": torch.ones(2), name: tensor})
        said[name] = None
    except MakeweightError as error:
        said[name] = str(error)
first = from_first(accelerator, torch.arange(4.0).view(2, 2).T + rank)
state = {name: digest(tensor) for name, tensor in model.state_dict().items()}
whole = trainer.evaluate((x[:81], y[:81]))
model.eval()
with torch.no_grad():
    right = float((model(x[:81]).argmax(1) == y[:81]).double().mean())
result = {"processes": accelerator.num_processes, "masks": record.masks, "state": state, "said": said,
          "first": first.tolist(), "epoch": trainer.epoch, "metrics": metrics["accuracy"], "whole": whole["accuracy"],
          "right": right, "exported": trainer.export("out.safetensors") is not None}
with open(f"rank{rank}.json", "w") as file:
    json.dump(result, file)
accelerator.wait_for_everyone()
os._exit(0)  # as `trainer` ends
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes says of a run by the library, in which their models begin with other weights."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "script.py").write_text(SCRIPT)
    two_processes(folder, "script.py")
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_both_processes_have_the_same_masks_after_each_epoch_and_the_same_model(ranks: list[dict[str, Any]]) -> None:
    assert [each["processes"] for each in ranks] == [2, 2]
    assert len(ranks[0]["masks"]) >= 3
    assert set(ranks[0]["masks"][0]) == {"0", "4"}
    assert ranks[0]["masks"] == ranks[1]["masks"]
    assert ranks[0]["masks"][0] != ranks[0]["masks"][-1]
    assert ranks[0]["state"] == ranks[1]["state"]


def test_every_example_is_evaluated_once_over_the_processes(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["whole"] == ranks[1]["whole"] == pytest.approx(ranks[0]["right"], abs=1e-12)
    assert ranks[0]["metrics"] == ranks[1]["metrics"]


def test_a_stop_that_one_process_asks_for_stops_both(ranks: list[dict[str, Any]]) -> None:
    assert [each["epoch"] for each in ranks] == [3, 3]


def test_only_the_first_process_exports(ranks: list[dict[str, Any]]) -> None:
    assert [each["exported"] for each in ranks] == [True, False]


def test_tensors_that_differ_between_processes_are_found_by_their_bits_in_both(ranks: list[dict[str, Any]]) -> None:
    for each in ranks:
        assert each["said"]["equal"] is None
        for name in ("other", "negative zero"):
            assert f"masks of {name} differ" in each["said"][name]
            assert "fc1" not in each["said"][name]


def test_every_process_gets_the_tensor_of_the_first(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["first"] == ranks[1]["first"] == [[0.0, 2.0], [1.0, 3.0]]


class One:
    num_processes = 1


class Two:
    """An accelerator of two processes, whose other one has other bits in the second tensor."""

    num_processes, device = 2, torch.device("cpu")

    def gather(self, hashes: torch.Tensor) -> torch.Tensor:
        return torch.cat([hashes, hashes + torch.tensor([[0, 1]])])


def test_the_check_names_the_tensor_that_differs() -> None:
    tensors = {"fc1": torch.ones(2), "fc2": torch.ones(2)}
    with pytest.raises(MakeweightError, match="masks of fc2 differ"):
        check_equal(Two(), "masks", tensors)
    check_equal(One(), "masks", tensors)
    assert from_first(One(), tensors["fc1"]) is tensors["fc1"]


MODEL = """
import os, time
from collections import OrderedDict
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        time.sleep(float(os.environ.get("SLOW", 0)))
        return super().forward(x)

class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.norm(self.conv(x)))

def resnet(in_channels, num_classes):
    return nn.Sequential(OrderedDict(
        layer1=Block(in_channels, 8, 1), layer2=Block(8, 16, 2), layer3=Block(16, 32, 2), pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(), fc=nn.Linear(32, num_classes)))

def build(num_classes):
    return Net(nn.Flatten(), nn.Linear(64, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.3),
               nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, num_classes))
"""
SMALL = ["-m", "makeweight", "--plugins", "prune,kd,huffman", "--model", "my_model:build", "--epochs", "3", "--augment",
         "shift", "--prune.sparsity", "0.8", "--prune.every", "3", "--optimizer", "adamw",
         "--checkpoint-every", "4"]  # fmt: skip


def test_two_processes_that_were_killed_and_resumed_end_as_unbroken_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batch norm, whose statistics differ by what each process has seen, and dropout."""
    (tmp_path / "my_model.py").write_text(MODEL)
    monkeypatch.setenv("SLOW", "0.05")
    process = begin_two_processes(tmp_path, *SMALL, "--out", "broken")
    monkeypatch.delenv("SLOW")
    try:
        wait_for(lambda: any((tmp_path / "broken" / "checkpoints").glob("step-*1[26]")), process)
    finally:
        kill_all(process)
    process.communicate()
    saved = checkpoint.newest(tmp_path / "broken" / "checkpoints", pytest.fail)
    assert saved is not None
    assert saved["trainer"]["position"] > 0, saved["trainer"]
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    two_processes(tmp_path, *SMALL, "--out", "broken", "--resume")
    two_processes(tmp_path, *SMALL, "--out", "whole")
    assert summary(tmp_path / "broken")["processes"] == summary(tmp_path / "whole")["processes"] == 2
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_network_with_batch_norm_is_read_back_as_good_as_two_processes_trained_it(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(MODEL)
    words = ["--plugins", "prune,kd,huffman", "--model", "my_model:resnet", "--epochs", "4", "--batch-size", "64"]
    done = two_processes(tmp_path, "-m", "makeweight", *words, "--out", "run")
    assert done.stdout.count("epoch 4/4") == 1
    found = summary(tmp_path / "run")
    assert found["processes"] == 2
    assert found["steps"] == 80
    assert found["accuracy"] > 0.2
    assert found["export"]["accuracy"] == found["accuracy"]
    assert found["export"]["loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert not [name for name in load_tensors(tmp_path / "run" / "model.safetensors") if "kd" in name]


def test_what_is_refused_is_refused_once_by_two_processes_and_nothing_is_written(tmp_path: Path) -> None:
    launched = launch("-m", "makeweight", "--plugins", "prune", "--prune.layers", "conv*", "--out", "run")
    done = subprocess.run(launched, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.count("trainer: error: ") == 1
    assert everything_below(tmp_path) == []
