"""Strangers' plugins, installed by pip as anyone's would be, do all that ours do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from makeweight.testing import TWO_BATCHES, PluginConformance, run_trainer

from .helpers_structure import strangers


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from strangers(tmp_path_factory)


class TestMaxNorm(PluginConformance):
    name = "maxnorm"
    options = {"limit": 0.25}


class TestHalves(PluginConformance):
    name = "halves"
    options = {"layers": "fc1*", "batches": 1}


def test_its_option_its_hook_and_its_verb_work_beside_ours(tmp_path: Path) -> None:
    words = ["--plugins", "maxnorm,prune,huffman", *TWO_BATCHES, "--maxnorm.limit", "0.25", "--out", "run"]
    run_trainer(words, tmp_path)
    printed = run_trainer(["norms", "run/model.safetensors"], tmp_path).stdout.split()
    norms = dict(zip(printed[::2], map(float, printed[1::2]), strict=True))
    assert set(norms) == {"fc1.weight", "fc2.weight", "fc3.weight"}
    assert all(norm <= 0.2501 for norm in norms.values())


@pytest.mark.parametrize(
    ("plugin", "distribution", "verb"),
    [("maxnorm", "acme-maxnorm 1.2", "norms"), ("halves", "acme-halves 1.0", ""), ("drop", "acme-halves 1.0", "")],
)
def test_it_is_listed_with_its_distribution_and_its_verb(
    plugin: str, distribution: str, verb: str, tmp_path: Path
) -> None:
    listed = run_trainer(["plugins"], tmp_path).stdout
    line = next(line for line in listed.splitlines() if line.strip().startswith(plugin))
    assert distribution in line
    assert verb in line


@pytest.mark.parametrize("file", ["acme_maxnorm.py", "acme_halves/halves.py", "acme_halves/drop.py"])
def test_it_imports_makeweight_and_its_module_for_plugins_and_nothing_else_of_the_core(
    file: str, installed: Path
) -> None:
    tree = ast.parse((installed / file).read_text(encoding="utf-8"))
    imported = {each.module for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)}
    assert {name for name in imported if name and name.startswith("makeweight")} <= {"makeweight", "makeweight.plugin"}
