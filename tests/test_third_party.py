"""A stranger's plugin, installed by pip as anyone's would be, does all that ours do."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from makeweight.testing import TWO_BATCHES, PluginConformance, run_trainer


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "acme"
    source.mkdir()
    for file in (Path(__file__).parent / "third_party").iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", str(target), str(source)], check=True)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(target)
    sys.path.insert(0, str(target))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(target))
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


class TestStranger(PluginConformance):
    name = "maxnorm"
    options = {"limit": 0.25}


def test_its_option_its_hook_and_its_verb_work_beside_ours(tmp_path: Path) -> None:
    words = ["--plugins", "maxnorm,prune,huffman", *TWO_BATCHES, "--maxnorm.limit", "0.25", "--out", "run"]
    run_trainer(words, tmp_path)
    printed = run_trainer(["norms", "run/model.safetensors"], tmp_path).stdout.split()
    norms = dict(zip(printed[::2], map(float, printed[1::2]), strict=True))
    assert set(norms) == {"fc1.weight", "fc2.weight", "fc3.weight"}
    assert all(norm <= 0.2501 for norm in norms.values())


def test_it_is_listed_with_its_distribution_and_its_verb(tmp_path: Path) -> None:
    listed = run_trainer(["plugins"], tmp_path).stdout
    line = next(line for line in listed.splitlines() if line.strip().startswith("maxnorm"))
    assert "acme-maxnorm 1.2" in line
    assert "norms" in line
