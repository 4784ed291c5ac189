"""Two processes with very different data have equal ranges, those of all data, and equal learned step sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from makeweight.files.artifact import read
from makeweight.testing import free_port
from makeweight.training import checkpoint
from makeweight_qat.plugin import OBSERVE_EVERY

SCRIPT = """
import json, os, pathlib, sys
import torch
from makeweight import Trainer
from makeweight_qat import Quantization

kind = sys.argv[1]
x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
x[1::2] *= 50  # a process takes every other example of a batch
x[1::2] -= 100
y = (x[:, 0] > 0).long()
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
seen = []
plugin = Quantization(ranges=kind, begin=1)
trainer = Trainer(model, (x, y), (x, y), plugins=[plugin], epochs=3, batch_size=16, lr=1e-3, schedule="constant")


def look(module, inputs):
    if module.training:
        seen.append([float(inputs[0].min()), float(inputs[0].max())])


model.register_forward_pre_hook(look)
trainer.fit()
ranges = plugin.observed
pathlib.Path(f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps({
    "processes": trainer.accelerator.num_processes, "seen": seen,
    "bounds": ranges.bounds.tolist(), "scales": ranges.scales().tolist(), "zero": ranges.zero_point.tolist(),
    "steps": trainer.step, "weight": trainer.layers()["0"].weight.tolist(),
}))
trainer.accelerator.wait_for_everyone()
os._exit(0)  # as `trainer` ends
"""


STAGES = """
import json, os, pathlib
import torch
from makeweight import LoopOptions, Run, Stage
from makeweight_qat import Quantization

x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
x[1::2] *= 5  # a process takes every other example of a batch
y = (x[:, 0] > 0).long()
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
stages = [
    Stage(LoopOptions(epochs=2, batch_size=16, accumulate=2), {"qat": Quantization(ranges="learned", **each)})
    for each in ({"begin": 1.0}, {"weights": {"0": 8, "2": 4}, "begin": 0.5})
]
run = Run(model, (x, y), (x, y), stages, out="run")
run.fit()
plugin = run.trainer.plugins.by_name["qat"]
pathlib.Path(f"rank{run.accelerator.process_index}.json").write_text(json.dumps({
    "processes": run.accelerator.num_processes, "on": plugin.on,
    "steps": [each.tolist() for each in plugin.learned(used=True)], "unused": len(plugin.learned(used=False)),
    "ranges": [values.tolist() for _, values in plugin.observed.known().values()],
    "weights": [each.tolist() for each in run.model.parameters()],
}))
run.export("model.safetensors")
run.accelerator.wait_for_everyone()
os._exit(0)  # as `trainer` ends
"""


def ranks(folder: Path, script: str, *words: str) -> list[dict[str, Any]]:
    """Run a script in two processes, and return what each wrote, in the order of their ranks."""
    (folder / "script.py").write_text(script)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launch, "--main_process_port", str(free_port()), "script.py", *words]
    variables = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    written = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["processes"] for each in written] == [2, 2]
    return written


def test_learned_step_sizes_are_equal_in_all_processes_over_stages_with_a_late_begin(tmp_path: Path) -> None:
    one, other = ranks(tmp_path, STAGES)
    assert one == other
    assert one["on"]
    assert (len(one["steps"]), one["unused"]) == (4, 0)  # of two weights and two tensors of activations
    assert read(tmp_path / "model.safetensors").metadata["qat"]["weights"] == {"0": [8, 0], "2": [4, 0]}
    saved = [checkpoint.load(path)["plugins"]["qat"] for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert saved[-1]["weights"][0][2].tolist() == one["steps"][0]


@pytest.mark.parametrize("kind", ["minmax", "moving", "percentile", "learned"])
def test_ranges_cover_the_data_of_all_processes(kind: str, tmp_path: Path) -> None:
    one, other = ranks(tmp_path, SCRIPT, kind)
    for what in ("bounds", "scales", "zero", "weight"):
        assert one[what] == other[what], what
    per_epoch = one["steps"] // 3
    steps = list(zip(one["seen"], other["seen"], strict=True))[per_epoch:]  # since it began
    assert len(steps) == 2 * OBSERVE_EVERY
    looked = steps if kind == "minmax" else steps[::OBSERVE_EVERY]
    lows, highs = ([pick(a[end], b[end]) for a, b in looked] for pick, end in ((min, 0), (max, 1)))
    low, high = -one["bounds"][0][0], one["bounds"][1][0]
    if kind == "minmax":
        assert (low, high) == pytest.approx((min(lows), max(highs)))
    elif kind == "learned":
        assert (low, high) == pytest.approx((lows[0], highs[0]))
    elif kind == "moving":
        assert (low, high) == pytest.approx((average(lows), average(highs)), rel=1e-4)
    else:
        assert min(lows) <= low < 0 < high <= max(highs)


def average(values: list[float]) -> float:
    from makeweight_qat.activations import AVERAGE

    result = values[0]
    for value in values[1:]:
        result += AVERAGE * (value - result)
    return result
