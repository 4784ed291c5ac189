"""What `evaluate` measures: metrics of every example, multiply-accumulates by closed form, latencies side by side."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from makeweight import UsageError
from makeweight.commands.cli import main
from makeweight.commands.comparison import compare
from makeweight.commands.latency import Latency, latencies, times_as_fast
from makeweight.data.batches import Batches, Tensors
from makeweight.files.run_onnx import OnnxModel
from makeweight.task import Task
from makeweight.training.accelerators import new_accelerator

CPU = torch.device("cpu")


class OddOnesLater(nn.Module):
    """Stops early for examples whose first number is even: the rest alone goes through the second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.first(x)
        odd = x[:, 0] % 2 == 1
        out[odd] = self.second(out[odd])
        result: Tensor = out
        return result


def test_multiply_accumulates_are_the_mean_over_all_examples() -> None:
    x = torch.arange(40.0)[:, None].expand(40, 6)
    data = Tensors((x, torch.arange(40) % 10))
    batches = {size: Batches(data, size, CPU, training=False) for size in (16, 1, 8)}
    plain, early = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 10)), OddOnesLater()
    rows = compare(plain, {"early": early, "whole": plain}, batches, Task(), new_accelerator("no"))
    assert [row.name for row in rows] == ["plain float32", "early", "whole"]
    assert [row.multiply_accumulates for row in rows] == [0, 60 + 100 / 2, 160]
    right = (early(x).argmax(1) == torch.arange(40) % 10).float().mean()
    assert rows[1].metrics["accuracy"] == pytest.approx(float(right))
    for row in rows:
        assert list(row.latency) == list(row.times_as_fast) == [1, 8]
        assert all(latency.median > 0 for latency in row.latency.values())
    assert rows[0].times_as_fast == {1: 1, 8: 1}


def test_latencies_are_taken_in_turns_over_the_same_batches() -> None:
    calls: list[tuple[str, int]] = []
    both = [lambda batch, name=name: calls.append((name, batch)) for name in "ab"]
    times = latencies(both, [10, 20, 30], CPU, budget=0)
    assert calls[:6] == [("a", 10), ("b", 10), ("a", 20), ("b", 20), ("a", 30), ("b", 30)]
    assert len(times[0]) == len(times[1]) == 5
    assert len(calls) == 2 * (2 + 5)  # two rounds are not counted


def test_how_many_times_as_fast_is_the_median_over_rounds_of_the_ratio() -> None:
    assert times_as_fast([1, 1, 2], [3, 4, 100]) == 4  # 3, 4 and 50: a hiccup in one round does not tell
    assert Latency.of([1, 2, 3, 4, 5]) == Latency(3, 2, 5)
    [seconds] = latencies([lambda batch: time.sleep(batch)], [0.02], CPU, budget=0.1)
    assert min(seconds) >= 0.02


@pytest.mark.slow  # exports and times an ONNX model
def test_an_onnx_file_is_measured_beside_the_plain_model_under_onnxruntime(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", "digits", "--epochs", "1", "--export", "safetensors,onnx", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    assert main(["evaluate", str(tmp_path / "run" / "model.onnx")]) == 0
    plain, row = capsys.readouterr().out.splitlines()[-3:-1]
    accuracy = json.loads((tmp_path / "run" / "summary.json").read_text())["accuracy"]
    assert plain.split()[:2] == ["plain", "float32"]
    assert row.split()[:2] == ["model.onnx", f"{100 * accuracy:.2f}"]
    assert len(row.split()) == len(["file", "accuracy", "%", "loss", *["ms", "faster"] * 2])
    OnnxModel(tmp_path / "run" / "model.onnx")(torch.zeros(3, 1, 8, 8))
    with pytest.raises(UsageError, match=r"takes \['batch', 1, 8, 8\] tensor.*, but the data has \[3, 1, 28, 28\]"):
        OnnxModel(tmp_path / "run" / "model.onnx")(torch.zeros(3, 1, 28, 28))


@pytest.mark.parametrize(
    ("name", "said"), [("model.pt2", "is a torch.export program"), ("nowhere.onnx", "file not found")]
)
def test_what_cannot_be_evaluated_is_a_line(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.pt2").write_bytes(b"")
    assert main(["evaluate", str(tmp_path / name)]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
