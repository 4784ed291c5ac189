"""What somebody sees first: `make demo`, and the end of the first run that the README shows."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from makeweight.commands import tables
from makeweight.discovery import installed

from .helpers import here

ROOT = Path(__file__).parent.parent

PYTHON = """#!/bin/sh
# Makes an environment of itself and of a trainer, and is as talkative as pip.
case "$*" in
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$(dirname "$0")/trainer" "$3/bin" ;;
"-m pip install "*)
    for line in 1 2 3 4 5 6 7 8 9; do echo "WARNING: $line" >&2; done
    case "$*" in *requirements.txt) test -z "$PIP_FAILS" || { echo "ERROR: no network" >&2; exit 3; } ;; esac ;;
*) exit 9 ;;
esac
"""
TRAINER = """#!/bin/sh
for epoch in 1 2 3; do echo "epoch $epoch/3  loss 0.1"; done
test -z "$TRAINING_FAILS" || { echo "trainer: error: no memory" >&2; exit 1; }
echo "the table of $*"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `make` reads of the repository, and programs that stand for python and trainer."""
    for path in [ROOT / "Makefile", ROOT / "requirements.txt", *ROOT.glob("**/pyproject.toml")]:
        if "tests" not in path.parts:
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    for name, text in [("python", PYTHON), ("trainer", TRAINER)]:
        (tmp_path / "stubs" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "stubs" / name).write_text(text)
        (tmp_path / "stubs" / name).chmod(0o755)
    return tmp_path


def make(clone: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make` with these words, and not as a part of the `make test` that may have started the tests."""
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", f"PYTHON={clone}/stubs/python", *words], cwd=clone, env=ours | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_make_demo_says_what_it_installs_what_it_trains_and_the_table(clone: Path) -> None:
    done = make(clone, "demo")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    environment, packages, training, table = done.stdout.splitlines()
    assert environment.startswith("environment: .venv")
    assert packages.startswith("packages: requirements.txt")
    assert ".venv/bin/trainer --recipe recipes/demo.yaml --out runs/demo" in training
    assert table == "the table of --recipe recipes/demo.yaml --out runs/demo"
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert (clone / ".venv" / "install.log").read_text().count("WARNING") == 18


def test_a_second_demo_installs_nothing(clone: Path) -> None:
    make(clone, "demo")
    done = make(clone, "demo")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2


def test_make_shows_all_that_pip_said_where_it_fails(clone: Path) -> None:
    done = make(clone, "demo", PIP_FAILS="1")
    assert done.returncode == 2
    assert done.stderr.count("WARNING") == 18
    assert "ERROR: no network" in done.stderr
    assert "trainer" not in done.stdout
    assert make(clone, "demo").returncode == 0  # the failure is not taken for done


def test_make_shows_why_the_demo_fails(clone: Path) -> None:
    done = make(clone, "demo", TRAINING_FAILS="1")
    assert done.returncode == 2
    assert "trainer: error: no memory" in done.stderr


# The end of a run

ADVICE = (
    "model.safetensors stores all weights uncoded, including zeros and repeated values: add huffman to --plugins to "
    "code it (verbs: trainer pack, trainer unpack)"
)


@pytest.fixture
def ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The last lines of the README's first run, from the table on."""
    assert here("--plugins", "prune,kd", "--epochs", 1, "--out", tmp_path / "run") == 0
    return capsys.readouterr().out.partition("measuring it\n")[2].splitlines()


def test_a_pruned_file_that_is_no_smaller_says_why_and_what_would_make_it_so(ended: list[str]) -> None:
    assert ended[-1] == ADVICE
    assert "report.html" in ended[-2]


def test_the_table_fits_80_columns(ended: list[str]) -> None:
    table = ended[:-2]
    assert any("dense float32" in line for line in table)
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize("plugins", ["prune,huffman", "qat", "kd", ""])
def test_nothing_is_said_of_a_file_that_is_coded_small_or_dense(
    plugins: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--plugins", plugins] if plugins else []
    assert here(*words, "--epochs", 1, "--out", tmp_path / "run") == 0
    assert "report.html" in capsys.readouterr().out.splitlines()[-1]


def test_shared_weights_are_repeats_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("--plugins", "cluster", "--epochs", 1, "--out", tmp_path / "run") == 0
    assert capsys.readouterr().out.splitlines()[-1] == ADVICE


def table(**changes: object) -> dict[str, object]:
    """The `export` table of a file of ten weights, as summary.json has it."""
    tensors = [{"bytes": 40, "density": 0.1}]
    return {"path": "m", "ratio": 0.99, "bytes": 100, "controls": {}, "tensors": tensors} | changes


def test_a_large_file_without_a_control_is_judged_by_its_zeros() -> None:
    assert tables.advice({"plugins": [], "export": table()}).startswith("m stores all weights uncoded")
    dense = [{"bytes": 40, "density": 1.0}]
    assert tables.advice({"plugins": [], "export": table(tensors=dense, bytes=41)}) == ""
    assert tables.advice({"plugins": [], "export": table(ratio=3.7)}) == ""


def test_no_codec_is_named_where_none_is_installed_or_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    known = installed()
    monkeypatch.setattr(tables, "installed", lambda *group: {"prune": known["prune"], "gone": known["kd"]})
    assert tables.advice({"plugins": [], "export": table()}) == ""
