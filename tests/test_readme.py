"""What the README shows is run: its Python files, its commands, its recipe and its plugin."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from makeweight.testing import run_trainer

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's Python files, its recipe and a small image folder, in a directory of their own."""
    path = tmp_path_factory.mktemp("readme")
    for block in blocks("python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name, block
        (path / name[1]).write_text(block)
    (path / "recipe.yaml").write_text(blocks("yaml")[0])
    import torch
    from torchvision.transforms.v2.functional import to_pil_image

    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (path / "pictures" / split / label).mkdir(parents=True)
            for number in range(100):
                pixels = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
                to_pil_image(pixels).save(path / "pictures" / split / label / f"{number}.png")
    return path


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith(("trainer", "ACCELERATE_USE_CPU"))]


def test_there_are_commands_to_run() -> None:
    assert len(commands()) >= 7
    assert len(blocks("python")) == 4


@pytest.mark.parametrize("command", commands())
def test_the_command_runs(command: str, folder: Path) -> None:
    words = shlex.split(command)
    if "mnist" in words:
        if not os.environ.get("MAKEWEIGHT_DATA"):
            pytest.skip("MAKEWEIGHT_DATA names no folder with MNIST")
        words += ["--epochs", "1"]
    if "resnet18" in words:
        words += ["--epochs", "1"]
    if words[0] == "trainer":
        run_trainer(words[1:], folder)
    else:
        assert words[1:7] == ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "-m"]
        run_trainer([*words[8:], "--out", "two"], folder, processes=2)
        assert json.loads((folder / "two" / "summary.json").read_text())["processes"] == 2


def test_the_library_example_prints_an_accuracy(folder: Path) -> None:
    done = subprocess.run([sys.executable, "library.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) > 0.8
    assert (folder / "model.safetensors").exists()


def test_the_recipe_runs(folder: Path) -> None:
    words = ["--recipe", "recipe.yaml", "--stages.0.epochs", "1", "--stages.1.epochs", "3", "--out", "recipe"]
    run_trainer(words, folder)
    summary = json.loads((folder / "recipe" / "summary.json").read_text())
    densities = {row["name"]: row["density"] for row in summary["export"]["tensors"]}
    assert densities["fc1.weight"] == pytest.approx(0.1, abs=1e-4)
    assert densities["fc3.weight"] == pytest.approx(0.3, abs=1e-4)


def test_the_plugin_of_20_lines_trains(folder: Path) -> None:
    plugin = next(block for block in blocks("python") if "class Noise" in block)
    assert len(plugin.strip().splitlines()) - 1 <= 21
    info = folder / "acme_noise-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-noise\nVersion: 1\nSummary: noise\n")
    entry = blocks("toml")[0].replace("[project.entry-points.makeweight]", "[makeweight]").replace('"', "")
    (info / "entry_points.txt").write_text(entry)
    words = ["--plugins", "noise,prune", "--noise.scale", "0.2", "--epochs", "1", "--out", "noise"]
    run_trainer(words, folder, PYTHONPATH=str(folder))
    assert json.loads((folder / "noise" / "summary.json").read_text())["plugins"] == ["noise", "prune"]
