"""Mutants of recipes, and of the JSON that runs leave: summary.json, metrics.jsonl, files of a sensitivity analysis."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accelerate import Accelerator

from makeweight.commands import recipes, report, trust
from makeweight.commands.arguments import parse
from makeweight.commands.finished_run import read_run
from makeweight.console import console
from makeweight.training.journal import Journal
from makeweight_prune import curves

from .helpers_mutants import Attempt, accepts, as_text, changed, drawn, edited, plugins_found_once

RECIPES = Path(__file__).parent.parent / "recipes"
PARSED, DRAWN = 8, 200
"""one in so many recipes is parsed to options, and one in so many reports drawn with its pictures"""
TENSORS = [
    {"name": f"fc{number}.weight", "shape": [number, 4], "dtype": "float32", "density": 0.5, "bits_per_weight": 3.25,
     "bytes": 16 * number}
    for number in range(1, 4)
]  # fmt: skip
SUMMARY = {
    "accuracy": 0.97, "loss": 0.1, "metric": "accuracy", "steps": 100, "processes": 1, "plugins": ["prune", "huffman"],
    "model": "lenet300", "data": "digits", "parameters": 266610, "seconds": 6.5,
    "metrics": {"accuracy": 0.96, "loss": 0.2},
    "export": {"path": "model.safetensors", "bytes": 19611, "dense_bytes": 202888, "plain_bytes": 202888,
               "ratio": 10.3, "accuracy": 0.97, "loss": 0.1, "controls": {"zstd -19": 33400}, "tensors": TENSORS},
}  # fmt: skip
METRICS = [{"step": 10 * epoch, "stage": 0, "epoch": epoch, "train_loss": 1 / epoch, "accuracy": 0.9,
            "sparsity/fc1": 0.5, "lr": 0.1, "seconds": 0.2, "ended": epoch == 3} for epoch in range(1, 4)]  # fmt: skip
LAYERS = {
    name: {"weights": 100, "sparsity": [0.5, 0.75, 0.9], "values": [0.95, 0.9, 0.5]} for name in ("fc1", "fc2", "fc3")
}


@contextmanager
def yaml(folder: Path, seed: int) -> Iterator[Attempt]:
    """Recipes, as text with edits and as trees with other values; some are parsed to options, as one beside a file."""
    trees = [recipes.read(path) for path in sorted(RECIPES.glob("*.yaml"))]
    texts = [recipes.write(tree) for tree in trees]  # without their comments
    path = folder / "config.yaml"

    def attempt(number: int) -> bool:
        draw = drawn(seed, number)
        which = draw.randrange(len(texts))
        if draw.random() < 0.5:
            text = edited(texts[which], draw)
        else:
            text = as_text(changed({"recipe": trees[which]}, draw).get("recipe"))
        path.write_text(text, encoding="utf-8")
        if number % PARSED == 0:
            return accepts(lambda: parse([], beside=path))
        return accepts(lambda: list(trust.code_in(recipes.read(path))))

    with plugins_found_once():
        yield attempt


@contextmanager
def json_files(folder: Path, seed: int) -> Iterator[Attempt]:
    """What a finished run holds, shown; metrics that a resumed run goes on; and a sensitivity analysis."""
    sensitivity = json.loads(curves.as_json("lenet300", "digits", "accuracy", 0.97, 100, LAYERS))
    trees: dict[str, Any] = {"summary.json": SUMMARY, "metrics.jsonl": METRICS, "sensitivity.json": sensitivity}
    originals = {name: as_lines(tree) if name == "metrics.jsonl" else as_text(tree) for name, tree in trees.items()}
    journal = Journal(folder, Accelerator(cpu=True))
    (folder / "config.yaml").write_text("model: lenet300\n")

    def attempt(number: int) -> bool:
        draw = drawn(seed, number)
        name = list(trees)[number % len(trees)]
        for other, text in originals.items():
            (folder / other).write_text(text)
        if draw.random() < 0.4:
            text = edited(originals[name], draw)
        else:
            tree = changed({name: trees[name]}, draw).get(name)
            text = as_lines(tree) if name == "metrics.jsonl" and isinstance(tree, list) else as_text(tree)
        (folder / name).write_text(text, encoding="utf-8")
        if name == "sensitivity.json":
            return accepts(lambda: curves.read(str(folder / name)))
        if name == "metrics.jsonl" and draw.random() < 0.5:
            with redirect_stderr(io.StringIO()) as said:
                accepted = accepts(lambda: journal.forget_after(0, 20, False))
            assert said.getvalue().count("\n") <= 1
            return accepted
        return accepts(lambda: shown(folder, draw.randrange(DRAWN) == 0), said=folder.name)

    yield attempt


def as_lines(values: list[Any]) -> str:
    return "".join(f"{as_text(value)}\n" for value in values)


def shown(run: Path, drawn: bool) -> None:
    """Print a run's table and write its report, with its pictures or without."""
    summary, _ = read_run(run)
    page = console()
    page.file = io.StringIO()
    report.print_summary(page, summary, run)
    if drawn:
        report.write_report(run)
        return
    with patch.object(report, "pictures", lambda summary, metrics: []):
        report.write_report(run)
