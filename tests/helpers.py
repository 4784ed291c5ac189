"""What the tests share: real runs of the trainer, in a process of their own or in this one, and what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from makeweight import LoopOptions, Run, Stage, Trainer, hookimpl, load_tensors
from makeweight.commands.cli import main
from makeweight.testing import free_port

MNIST = Path(os.environ.get("MAKEWEIGHT_DATA", "/nonexistent")) / "MNIST" / "raw"
needs_mnist = pytest.mark.skipif(
    not (MNIST / "train-images-idx3-ubyte").exists(), reason="MAKEWEIGHT_DATA names no folder that holds MNIST"
)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
"""one thread: what is compared bit for bit is not to depend on how a machine cuts a sum"""


@dataclass(eq=False)
class Watch:
    """A plugin that calls a function with the trainer in every step, between the forward and the backward."""

    look: Callable[[Trainer], None]

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        def looked(batch: Any, output: Any) -> torch.Tensor:
            self.look(trainer)
            result: torch.Tensor = output.sum() * 0
            return result

        trainer.losses["look"] = looked


def run_stages(
    model: torch.nn.Module, data: Any, *stages: tuple[LoopOptions, dict[str, Any]], watch: Any = None, **settings: Any
) -> Run:
    """A quiet run of stages, each its options and its plugins, whose every step `watch` sees."""
    watching = {} if watch is None else {"watch": Watch(watch)}
    made = [Stage(options, {**plugins, **watching}) for options, plugins in stages]
    run = Run(model, data, data, made, **settings)
    run.fit()
    return run


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "makeweight", *map(str, words)]


def trainer(
    cwd: Path, *words: object, code: int | None = 0, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`trainer` with these words in a process of its own; raises AssertionError where it ends with another code."""
    done = subprocess.run(
        command(*words), cwd=cwd, env=os.environ | ENVIRONMENT | environment, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    assert code is None or done.returncode == code, (
        f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    )
    return done


def launch(*words: object) -> list[str]:
    """`accelerate launch` of two processes on the CPU; what they run follows: `-m makeweight …`, or a script.

    Not --cpu: with it one process is started, whatever is asked for.
    """
    port = ["--main_process_port", str(free_port())]
    multi = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    return [*multi, *port, *map(str, words)]


def two_processes(cwd: Path, *words: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """What `launch` starts, run to its end; raises AssertionError where it fails. None of its processes outlives it."""
    process = begin_two_processes(cwd, *words)
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        kill_all(process)
    assert process.returncode == 0, f"{words} ended with {process.returncode}:\n{output}\n{errors}"
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def begin_two_processes(cwd: Path, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        launch(*words), cwd=cwd, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def kill_all(process: subprocess.Popen[str]) -> None:
    """kill -9 of a process and of all below it; torch's launcher gives each worker a session of its own."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for each in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def start(cwd: Path, *words: object) -> subprocess.Popen[str]:
    """`trainer` with these words, begun and not waited for."""
    return subprocess.Popen(
        command(*words), cwd=cwd, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Wait until something holds while a process runs. Raises AssertionError when it ends before that."""
    begun = time.monotonic()
    while not condition():
        if process.poll() is not None:
            output, errors = process.communicate()
            raise AssertionError(f"the process ended with {process.returncode} too early:\n{output}\n{errors}")
        assert time.monotonic() - begun < seconds, "it did not happen"
        time.sleep(0.01)


def here(*words: object) -> int:
    """`trainer` with these words in this process: its exit code."""
    try:
        return main([str(word) for word in words])
    except SystemExit as ended:
        return int(ended.code or 0)


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found


def epochs(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the time they took."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same_bits(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """The same names, dtypes, shapes and bits; -0.0 is not 0.0."""
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[name].dtype, other[name].shape), name
        bits, others = (each.contiguous().reshape(-1).view(torch.uint8) for each in (tensor, other[name]))
        assert torch.equal(bits, others), f"{name}: {int((bits != others).sum())} of {len(bits)} bytes differ"


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs ended with the same weights, bit for bit, by the same epochs."""
    assert_same_bits(load_tensors(one / "model.safetensors"), load_tensors(other / "model.safetensors"))
    lines, others = epochs(one), epochs(other)
    assert len(lines) == len(others)
    for line, against in zip(lines, others, strict=True):
        assert line == against, {
            key: (line.get(key), against.get(key)) for key in line if line[key] != against.get(key)
        }


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
