"""Conformance: what every plugin must do, as tests that a plugin's own tests subclass.

    from makeweight.testing import PluginConformance

    class TestPrune(PluginConformance):
        name = "prune"
        options = {"sparsity": 0.5}

The plugin must be installed. Runs are real ones: processes of their own, on scikit-learn's digits.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from .plugins import load_class

TWO_BATCHES = ["--model", "lenet300", "--data", "digits", "--epochs", "1", "--batch-size", "646"]
"""Of the 1,293 training digits: an epoch of two steps."""


def run_trainer(
    words: list[str], cwd: Path, processes: int = 1, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`trainer` with these words in a process of its own, or under `accelerate launch` in several on the CPU.

    Raises AssertionError, with what it printed, where it fails.
    """
    command = [sys.executable, "-m", "makeweight", *words]
    if processes > 1:
        # Not --cpu: with it accelerate starts one process, whatever is asked for.
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        port = ["--main_process_port", str(free_port())]
        command = [sys.executable, *launch, *port, "-m", "makeweight", *words]
    variables = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PluginConformance:
    """What holds for every plugin. Set `name`, and `options` that make it do something in two steps."""

    name: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def words(self, out: Path, *more: str) -> list[str]:
        """A run of two batches with the plugin on."""
        options = [word for key, value in self.options.items() for word in self._option(key, value)]
        return ["--plugins", self.name, *TWO_BATCHES, *options, "--out", str(out), *more]

    def _option(self, key: str, value: Any) -> list[str]:
        text = value if isinstance(value, str) else json.dumps(value)
        return [f"--{self.name}.{key.replace('_', '-')}", text]

    def test_loads_by_its_entry_point(self) -> None:
        cls = load_class(self.name)
        assert cls(**self.options) is not None

    def test_shows_its_options_without_torch(self) -> None:
        code = (
            "import sys\nfrom makeweight.cli import main\n"
            "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
            "print('torch is imported:', 'torch' in sys.modules)"
        )
        command = [sys.executable, "-c", code, "--plugins", self.name, "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"plugin {self.name}" in shown
        assert "torch is imported: False" in shown

    def test_trains_two_batches_and_reads_its_export_back_equal(self, tmp_path: Path) -> None:
        run_trainer(self.words(tmp_path / "run"), tmp_path)
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["steps"] == 2
        assert summary["plugins"] == [self.name]
        assert summary["export"]["accuracy"] == summary["accuracy"]
        assert summary["export"]["loss"] == summary["loss"]

    def test_a_run_that_was_broken_off_resumes_to_the_same_bits(self, tmp_path: Path) -> None:
        import torch

        from .artifact import load_tensors

        run_trainer(self.words(tmp_path / "whole"), tmp_path)
        run_trainer(self.words(tmp_path / "broken", "--checkpoint-every", "1"), tmp_path)
        first, second = sorted((tmp_path / "broken" / "checkpoints").iterdir())
        assert first.name == "step-000000001"
        for path in (second, tmp_path / "broken" / "model.safetensors"):
            path.rename(tmp_path / f"gone {path.name}")
        run_trainer(self.words(tmp_path / "broken", "--checkpoint-every", "1", "--resume"), tmp_path)
        whole, broken = (load_tensors(tmp_path / run / "model.safetensors") for run in ("whole", "broken"))
        assert list(whole) == list(broken)
        assert all(torch.equal(whole[name], broken[name]) for name in whole)

    def test_trains_in_two_processes(self, tmp_path: Path) -> None:
        run_trainer(self.words(tmp_path / "run"), tmp_path, processes=2)
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["processes"] == 2
        assert summary["steps"] == 2
        assert summary["export"]["accuracy"] == summary["accuracy"]
