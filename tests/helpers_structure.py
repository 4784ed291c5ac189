"""What the tests of structure share: strangers' plugins as pip installs them, a small network and the digits."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from makeweight import LoopOptions, Run, Stage, Trainer
from makeweight.discovery import load_class

THIRD_PARTY = Path(__file__).parent / "third_party"


def strangers(folders: pytest.TempPathFactory) -> Iterator[Path]:
    """Install what is in `third_party` with pip into a folder of its own, for this process and those that it starts."""
    target, sources = folders.mktemp("site"), folders.mktemp("source")
    shutil.copytree(THIRD_PARTY, sources, dirs_exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *options, *map(str, sorted(sources.iterdir()))], check=True)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(target), *([before] if before else [])])
    sys.path.insert(0, str(target))
    importlib.invalidate_caches()
    yield target
    sys.path.remove(str(target))
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


class Net(nn.Module):
    """Three Linear layers and a batch norm: 64 → 32 → 24 → 10."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2, self.fc3 = (
            nn.Linear(64, 32),
            nn.BatchNorm1d(32),
            nn.Linear(32, 24),
            nn.Linear(24, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.norm(self.fc1(x.flatten(1))).relu()
        output: Tensor = self.fc3(self.fc2(hidden).relu())
        return output


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


@cache
def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.from_numpy(found.images).float()[:, None] / 16, torch.from_numpy(found.target).long()


def train_data() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return x[:512], y[:512]


def eval_data() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return x[512:712], y[512:712]


SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 128, "lr": 0.1}


def made(plugins: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Instances of installed plugins from their options."""
    return {name: load_class(name)(**options) for name, options in plugins.items()}


def trained(plugins: dict[str, dict[str, Any]], model: nn.Module | None = None, **settings: Any) -> Trainer:
    """A quiet trainer after `fit`, with installed plugins by their options."""
    settings = SETTINGS | settings
    run = Trainer(model or net(), train_data(), eval_data(), made(plugins), **settings)
    run.journal.console.quiet = True
    run.fit()
    return run


def run_of(
    *stages: dict[str, dict[str, Any]], model: nn.Module | None = None, out: Path | None = None, resume: bool = False,
    each: tuple[dict[str, Any], ...] = (), **settings: Any,
) -> Run:  # fmt: skip
    """A run of stages with installed plugins by their options, to be fitted; `each` are settings by stage."""
    shared = SETTINGS | settings
    made_stages = [
        Stage(LoopOptions(**(shared | (each[number] if each else {}))), made(plugins))
        for number, plugins in enumerate(stages)
    ]
    return Run(model or net(), train_data(), eval_data(), made_stages, out=out, resume=resume)


def logits(model: nn.Module) -> Tensor:
    """The logits of a model in eval on some digits that it was not trained on."""
    with torch.no_grad():
        found: Tensor = model.eval()(digits()[0][1000:1100])
    return found
