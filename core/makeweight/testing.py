"""The conformance suite: tests that every plugin must pass. The tests of a plugin subclass it:

    from makeweight.testing import PluginConformance

    class TestPrune(PluginConformance):
        name = "prune"
        options = {"sparsity": 0.5}

The plugin must be installed, and pytest is required. Each run is a real `trainer` process on scikit-learn's digits.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pytest

from .discovery import load_class

TWO_BATCHES = ["--model", "lenet300", "--data", "digits", "--epochs", "1", "--batch-size", "646"]
"""options of a run with one epoch of two steps: 1,293 training examples in batches of 646"""


def run_trainer(
    words: list[str], cwd: Path, processes: int = 1, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `trainer` with these arguments in a subprocess, or on several CPU processes with `accelerate launch`.

    `cwd` is the working directory and `code` the expected exit code; keyword arguments set environment variables.
    Returns the completed process. Raises AssertionError, with the output, for any other exit code.
    """
    command = [sys.executable, "-m", "makeweight", *words]
    if processes > 1:
        # Without --cpu: with it, accelerate ignores --num_processes and starts one process.
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        port = ["--main_process_port", str(free_port())]
        command = [sys.executable, *launch, *port, "-m", "makeweight", *words]
    variables = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def train(words: list[str]) -> None:
    """`trainer` with these words in this process, which takes a tenth of the time. Raises AssertionError if it fails.

    The number of threads, and what Accelerate keeps of a process's first run, are restored afterwards.
    """
    import torch
    from accelerate.state import AcceleratorState

    from .commands.cli import main

    threads = torch.get_num_threads()
    try:
        code = main(words)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(threads)
    assert code == 0, f"{' '.join(words)} ended with {code}"


def free_port() -> int:
    """A free TCP port of localhost."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PluginConformance:
    """Tests of the contract that hold for every plugin.

    A subclass sets `name`, the entry point, and `options` with which the plugin has an effect within two steps.
    `second_stage` holds the plugin options that differ in the second stage of two-stage runs.
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    second_stage: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def words(self, out: Path, *more: str) -> list[str]:
        """The command line of a run of two steps with the plugin, with a checkpoint after every step."""
        options = [word for key, value in self.options.items() for word in self._option(key, value)]
        checkpoints = ["--checkpoint-every", "1", "--keep-checkpoints", "9"]
        return ["--plugins", self.name, *TWO_BATCHES, *options, *checkpoints, "--out", str(out), *more]

    def staged_words(self, cwd: Path, out: Path, *more: str) -> list[str]:
        """The command line of a run of two stages with two steps each. Writes its recipe to `cwd`."""
        stages = [{"epochs": 1}, {"epochs": 1, self.name: dict(self.second_stage)}]
        (cwd / "stages.yaml").write_text(json.dumps({"stages": stages}))
        return self.words(out, "--recipe", str(cwd / "stages.yaml"), *more)

    def _option(self, key: str, value: Any) -> list[str]:
        text = value if isinstance(value, str) else json.dumps(value)
        return [f"--{self.name}.{key.replace('_', '-')}", text]

    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The directory of a finished run with checkpoints of both steps."""
        folder = tmp_path_factory.mktemp(cls.name)
        train(cls().words(folder / "run"))
        return folder / "run"

    def test_loads_by_its_entry_point(self) -> None:
        cls = load_class(self.name)
        assert cls(**self.options) is not None

    def test_shows_its_options_without_torch(self) -> None:
        code = (
            "import sys\nfrom makeweight.commands.cli import main\n"
            "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
            "print('torch is imported:', 'torch' in sys.modules)"
        )
        command = [sys.executable, "-c", code, "--plugins", self.name, "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"plugin {self.name}" in shown
        assert "torch is imported: False" in shown

    def test_trains_two_batches_and_reads_its_export_back_equal(self, finished: Path) -> None:
        summary = read_summary(finished)
        assert summary["steps"] == 2
        assert summary["plugins"] == [self.name]
        assert summary["export"]["accuracy"] == summary["accuracy"]
        assert summary["export"]["loss"] == summary["loss"]

    def test_its_export_gives_a_fresh_original_the_outputs_of_the_trained_network(self, tmp_path: Path) -> None:
        import torch

        from . import Trainer, load
        from .commands.session import Session
        from .models.modes import evaluating
        from .options import Options

        session = Session(Options(validation=0.1))
        plugin = load_class(self.name)(**self.options)
        trainer = Trainer(session.original(), session.data.train, session.data.validation, {self.name: plugin},
                          epochs=1, batch_size=646)  # fmt: skip
        trainer.fit()
        trainer.export(tmp_path / "model.safetensors")
        assert trainer.export_size() == (tmp_path / "model.safetensors").stat().st_size
        restored = load(tmp_path / "model.safetensors", session.original())
        x = session.data.validation[0:50][0]
        with torch.no_grad(), evaluating(trainer.model), evaluating(restored):
            assert torch.equal(trainer.model(x), restored(x))

    def test_a_run_that_was_broken_off_resumes_to_the_same_bits(self, finished: Path, tmp_path: Path) -> None:
        broken = break_off(finished, tmp_path / "broken")
        run_trainer(self.words(broken, "--resume"), tmp_path)
        assert_same_tensors(finished, broken)

    def test_a_run_may_start_from_an_export_and_its_own_is_read_on_the_original(
        self, finished: Path, tmp_path: Path
    ) -> None:
        train(self.words(tmp_path / "again", "--weights", str(finished / "model.safetensors")))
        summary = read_summary(tmp_path / "again")
        assert summary["export"]["accuracy"] == summary["accuracy"]
        assert summary["export"]["loss"] == summary["loss"]

    def test_two_stages_resume_in_the_second_to_the_same_bits(self, tmp_path: Path) -> None:
        train(self.staged_words(tmp_path, tmp_path / "whole"))
        assert read_summary(tmp_path / "whole")["steps"] == 4
        broken = break_off(tmp_path / "whole", tmp_path / "broken")
        assert max(path.name for path in (broken / "checkpoints").iterdir()) == "step-000000003-stage-001"
        run_trainer(self.staged_words(tmp_path, broken, "--resume"), tmp_path)
        assert_same_tensors(tmp_path / "whole", broken)

    def test_trains_two_stages_in_two_processes_on_different_data(self, tmp_path: Path) -> None:
        """Each process trains on its own half of every batch."""
        run_trainer(self.staged_words(tmp_path, tmp_path / "run"), tmp_path, processes=2)
        summary = read_summary(tmp_path / "run")
        assert summary["processes"] == 2
        assert summary["steps"] == 4
        assert summary["export"]["accuracy"] == summary["accuracy"]

    def test_a_record_of_a_later_number_is_refused_with_the_version_to_install(
        self, finished: Path, tmp_path: Path
    ) -> None:
        from .commands.session import Session
        from .errors import MakeweightError
        from .files.artifact import read, write
        from .loading import load_plain
        from .options import Options
        from .training import checkpoint

        artifact = read(finished / "model.safetensors")
        later = [each._replace(record=each.record | {"number": 1000}) for each in artifact.records]
        numbered = isinstance(artifact.metadata.get(self.name), dict)
        if not later and not numbered:
            pytest.skip(f"{self.name} writes no record of its own")
        if numbered:
            artifact.metadata[self.name]["number"] = 1000
        artifact.records = later
        artifact.tensors = dict(artifact.tensors)
        write(artifact, tmp_path / "later.safetensors")
        with pytest.raises(MakeweightError, match=r"pip install '.+>=.+'"):
            load_plain(tmp_path / "later.safetensors", Session(Options()).original())
        if later:
            broken = break_off(finished, tmp_path / "broken")
            newest = max((broken / "checkpoints").iterdir())
            parts = checkpoint.load(newest)
            for record in parts["structure"]["records"]:
                record[2]["number"] = 1000
            shutil.rmtree(newest)
            checkpoint.save(newest.parent, 1, parts)
            failed = run_trainer(self.words(broken, "--resume"), tmp_path, code=1)
            assert failed.stderr.count("\n") == 1
            assert "pip install" in failed.stderr


def read_summary(run: Path) -> dict[str, Any]:
    """The content of summary.json in the run directory `run`."""
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found


def break_off(finished: Path, broken: Path) -> Path:
    """Copy a finished run to `broken`, as if it had been killed before the checkpoint of its last step. Returns it."""
    shutil.copytree(finished, broken)
    root = broken / "checkpoints"
    last = max(path.name for path in root.iterdir()).removesuffix("-end")
    for path in root.glob(f"{last}*"):
        shutil.rmtree(path)
    for name in ("model.safetensors", "summary.json", "report.html"):
        (broken / name).unlink()
    return broken


def assert_same_tensors(one: Path, other: Path) -> None:
    """Raise AssertionError unless the exports of two run directories hold bitwise equal tensors."""
    import torch

    from .loading import load_tensors

    ours, theirs = (load_tensors(run / "model.safetensors") for run in (one, other))
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
