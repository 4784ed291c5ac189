"""The number of threads, on which the order of sums depends, is part of what a run says of itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from makeweight.commands.recipes import load_yaml
from makeweight.training import checkpoint

from .helpers import assert_same_run, here

pytestmark = pytest.mark.slow  # runs with two threads wait for each other on a busy machine

WORDS = ["--epochs", 2, "--checkpoint-every", 5]


def test_config_yaml_and_the_checkpoints_say_how_many_threads_a_run_had(tmp_path: Path) -> None:
    assert here(*WORDS, "--threads", 2, "--out", tmp_path / "run") == 0
    assert load_yaml((tmp_path / "run" / "config.yaml").read_text())["threads"] == 2
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoint.load(newest)["trainer"]["threads"] == 2


def test_a_run_is_resumed_and_repeated_with_the_threads_that_it_had(tmp_path: Path) -> None:
    assert here(*WORDS, "--threads", 2, "--out", tmp_path / "run") == 0
    broken = shutil.copytree(tmp_path / "run", tmp_path / "broken")
    shutil.rmtree(max((broken / "checkpoints").iterdir()))
    torch.set_num_threads(1)
    assert here(*WORDS, "--out", broken, "--resume") == 0  # by the checkpoint alone: other words would say another
    assert torch.get_num_threads() == 2
    assert load_yaml((broken / "config.yaml").read_text())["threads"] == 2
    assert_same_run(tmp_path / "run", broken)
    torch.set_num_threads(1)
    assert here("--recipe", tmp_path / "run" / "config.yaml", "--out", tmp_path / "again") == 0
    assert torch.get_num_threads() == 2
    assert_same_run(tmp_path / "run", tmp_path / "again")


def test_a_number_out_of_range_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("--threads", 5000, "--out", tmp_path / "run") == 2
    assert "threads 5000: expected 0" in capsys.readouterr().err
