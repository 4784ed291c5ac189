"""What plugins do together: every ordered pair keeps both promises, or is refused at start with a reason.

The README's table is made of what these runs did; `python -m tests.test_composition` writes it anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import save

from makeweight import Trainer, UsageError, load, load_tensors
from makeweight.commands.session import Session
from makeweight.discovery import load_class
from makeweight.files.artifact import read
from makeweight.models.lenets import LeNet300
from makeweight.options import Options

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- pairs of plugins: python -m tests.test_composition -->\n", "<!-- end of pairs -->\n"
OPTIONS: dict[str, dict[str, Any]] = {
    "prune": {"sparsity": 0.7, "end": 1.0, "every": 1},
    "cluster": {"values": 8, "begin": 1.0},
    "kd": {},
    "qat": {"weights": 4},
    "huffman": {},
}
PAIRS = list(permutations(OPTIONS, 2))


def zeros_are_there(run: Trainer, tensors: dict[str, torch.Tensor], path: Path) -> bool:
    weights = [tensors[f"{layer}.weight"] for layer in run.layers()]
    return all(int((weight == 0).sum()) >= round(0.7 * weight.numel()) for weight in weights)


def values_are_few(run: Trainer, tensors: dict[str, torch.Tensor], path: Path) -> bool:
    weights = [tensors[f"{layer}.weight"] for layer in run.layers()]
    return all(len(weight[weight != 0].unique()) <= 8 for weight in weights)


def the_teacher_was_heard(run: Trainer, tensors: dict[str, torch.Tensor], path: Path) -> bool:
    terms = {"kd", "kd_labels", "kd_features"}
    return terms <= set(run.losses) and all(run.metrics[f"train_{term}"] > 0 for term in terms)


def weights_are_on_a_grid(run: Trainer, tensors: dict[str, torch.Tensor], path: Path) -> bool:
    """Integers of 4 bits: each channel's largest magnitude is 7 steps, and the record says so."""
    grids = []
    for layer in run.layers():
        weight = tensors[f"{layer}.weight"]
        steps = weight * 7 / weight.abs().amax(1, keepdim=True).clamp_min(1e-20)
        grids.append(bool((steps - steps.round()).abs().max() < 1e-4))
    return all(grids) and read(path).metadata["qat"]["weights"] == {name: [4, 0] for name in run.layers()}


def the_file_is_smaller(run: Trainer, tensors: dict[str, torch.Tensor], path: Path) -> bool:
    return path.stat().st_size < len(save(tensors)) and "huffman" in read(path).metadata


PROMISES: dict[str, Callable[[Trainer, dict[str, torch.Tensor], Path], bool]] = {
    "prune": zeros_are_there,
    "cluster": values_are_few,
    "kd": the_teacher_was_heard,
    "qat": weights_are_on_a_grid,
    "huffman": the_file_is_smaller,
}


@cache
def outcome(*names: str) -> str:
    """`yes` where a short run keeps all promises and reads back equal; the reason where it is refused."""
    data = Session(Options()).data
    plugins = {name: load_class(name)(**OPTIONS[name]) for name in names}
    torch.manual_seed(0)
    model = LeNet300((1, 8, 8), 10)
    try:
        run = Trainer(model, data.train, data.validation, plugins, epochs=2)
    except UsageError as error:
        return str(error)
    run.journal.console.quiet = True
    run.fit()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        run.export(path)
        tensors = load_tensors(path)
        for name in names:
            assert PROMISES[name](run, tensors, path), f"{','.join(names)} breaks the promise of {name}"
        restored = load(path, run.fresh_model()).eval()
    x = torch.stack([data.test[index][0] for index in range(100)])
    with torch.no_grad():
        assert torch.equal(restored(x), run.model.eval()(x)), f"{','.join(names)} does not read back equal"
    return "yes"


def cell(*names: str) -> str:
    said = outcome(*names)
    if order := re.search(r"use (\S+)$", said):
        return f"as `{order[1]}`"
    return "yes" if said == "yes" else "no"


def table() -> str:
    """The README's table, and the reasons below it."""
    rows = [f"| first \\ second | {' | '.join(OPTIONS)} |", "|---" * (len(OPTIONS) + 1) + "|"]
    rows += [
        f"| {first} | {' | '.join('' if first == second else cell(first, second) for second in OPTIONS)} |"
        for first in OPTIONS
    ]
    said = {outcome(*pair) for pair in PAIRS}
    found = [re.match(r"plugins '(\w+)' and '(\w+)' cannot be used together \((.*)\)", text) for text in said]
    reasons = sorted(f"`{match[1]}` and `{match[2]}`: {match[3]}" for match in found if match)
    return "\n".join(rows) + "\n\n" + "".join(f"{reason}.\n" for reason in reasons)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_pair_keeps_both_promises_or_is_refused_with_a_reason(first: str, second: str) -> None:
    said = outcome(first, second)
    assert said == "yes" or re.search(r"cannot be used together \(.+\)|cannot work: use \w+,\w+$", said), said


def test_what_is_refused_in_one_order_works_in_the_other() -> None:
    for first, second in PAIRS:
        if cell(first, second).startswith("as "):
            assert cell(first, second) == f"as `{second},{first}`"
            assert cell(second, first) == "yes"


def test_few_pairs_are_refused() -> None:
    refused = {pair for pair in PAIRS if cell(*pair) == "no"}
    assert refused == {("qat", "cluster"), ("cluster", "qat")}


def test_all_that_can_go_together_do() -> None:
    assert outcome("prune", "cluster", "kd", "huffman") == "yes"
    assert outcome("prune", "kd", "qat", "huffman") == "yes"


def test_the_readme_shows_this_table() -> None:
    text = README.read_text(encoding="utf-8")
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == table()


if __name__ == "__main__":
    before, after = README.read_text(encoding="utf-8").split(BEGIN)
    README.write_text(before + BEGIN + table() + END + after.split(END)[1], encoding="utf-8")
