"""The Makefile, the workflow and the pre-commit hooks name what exists, and agree with each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from makeweight.testing import run_trainer

from .fuzz import watched
from .helpers import here, trainer

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS = re.findall(r"^([a-z][a-z-]*):.*## .", MAKEFILE, flags=re.MULTILINE)
"""the targets that have a line of help"""


def read(path: str) -> Any:
    return YAML(typ="safe").load((ROOT / path).read_text(encoding="utf-8"))


def recipe(target: str) -> list[str]:
    """The lines that make runs for a target itself, with the variables as they are written."""
    found = re.search(rf"^{target}: [^=\n]*\n((?:\t.*\n)+)", MAKEFILE, flags=re.MULTILINE)
    assert found, target
    return [line.strip() for line in found[1].splitlines()]


# The licence


@pytest.mark.parametrize("project", sorted(ROOT.glob("plugins/*/pyproject.toml")), ids=lambda path: path.parent.name)
def test_the_licence_of_a_plugin_is_that_of_the_core(project: Path) -> None:
    licence = project.parent / "LICENSE"
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert not licence.is_symlink()


# make


def test_every_target_has_a_line_of_help() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)
    assert phony
    assert phony[1].split() == TARGETS


@pytest.mark.parametrize("words", [[], ["help"]], ids=["make", "make help"])
def test_make_alone_lists_the_targets_and_installs_nothing(words: list[str], tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run(
        ["make", "--no-print-directory", *words], cwd=tmp_path, env={"PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["make", target] for target in TARGETS]
    assert all(len(line.split()) > 4 for line in done.stdout.splitlines())
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]


def test_the_fast_tests_are_all_tests_that_are_not_slow() -> None:
    assert recipe("test") == ["$(PYTEST)"]
    assert recipe("test-fast") == ['$(PYTEST) -m "not slow"']


# conftest.py of the repository marks tests that start a process


def starts_one() -> None:
    subprocess.run([sys.executable, "--version"], check=True)


def starts_one_inside() -> None:
    def inner() -> None:
        starts_one()

    inner()


def is_slow(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("slow") is not None


def test_a_test_that_starts_a_process_is_slow(request: pytest.FixtureRequest) -> None:
    assert callable(subprocess.run)
    assert is_slow(request)


def test_a_test_that_calls_a_function_that_starts_a_process_is_slow(request: pytest.FixtureRequest) -> None:
    assert callable(starts_one_inside)
    assert is_slow(request)


def test_a_test_that_runs_trainer_in_another_process_is_slow(request: pytest.FixtureRequest) -> None:
    assert callable(trainer)
    assert is_slow(request)


def test_a_test_that_watches_processes_of_multiprocessing_is_slow(request: pytest.FixtureRequest) -> None:
    assert callable(watched)
    assert is_slow(request)


class TestConformance:
    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls) -> Callable[..., Any]:
        return run_trainer

    def test_a_test_whose_fixture_starts_a_process_is_slow(
        self, finished: Callable[..., Any], request: pytest.FixtureRequest
    ) -> None:
        assert callable(finished)
        assert is_slow(request)


def test_a_test_that_trains_in_this_process_is_not_slow(request: pytest.FixtureRequest) -> None:
    assert callable(here)
    assert not is_slow(request)


# The workflow

WORKFLOW = ".github/workflows/test.yml"


def steps() -> list[dict[str, Any]]:
    return [step for job in read(WORKFLOW)["jobs"].values() for step in job["steps"]]


def test_the_workflow_calls_targets_that_exist() -> None:
    called = [step["run"].split() for step in steps() if "run" in step]
    assert {words[0] for words in called} == {"make"}
    assert {target for words in called for target in words[1:]} <= set(TARGETS)
    assert ["make", "test"] in called
    assert ["make", "lint"] in called


def test_the_workflow_runs_the_python_versions_of_the_classifiers() -> None:
    matrix = read(WORKFLOW)["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    classifiers = PROJECT["project"]["classifiers"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(classifiers))
    assert all(isinstance(version, str) for version in matrix)  # 3.10 without quotes is 3.1
    assert matrix == named
    assert PROJECT["project"]["requires-python"] == f">={matrix[0]}"


def test_the_workflow_only_reads_and_shows_every_version_that_fails() -> None:
    workflow = read(WORKFLOW)
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow["jobs"].values())
    assert workflow["jobs"]["test"]["strategy"]["fail-fast"] is False
    assert "github.ref" in workflow["concurrency"]["group"]
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used
    assert [each for each in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", each)] == []


def test_the_workflow_caches_by_the_files_that_make_installs_from() -> None:
    cached = [step["with"]["cache-dependency-path"].split() for step in steps() if "python" in step.get("uses", "")]
    assert cached
    prerequisites = re.search(r"^\$\(STAMP\): (.*)$", MAKEFILE, flags=re.MULTILINE)
    assert prerequisites
    for paths in cached:
        assert paths == re.sub(r"\$\(wildcard (.*)\)", r"\1", prerequisites[1]).split()
        assert all(list(ROOT.glob(path)) for path in paths)


# The hooks of pre-commit


def hooks() -> list[dict[str, Any]]:
    repositories = read(".pre-commit-config.yaml")["repos"]
    assert [each["repo"] for each in repositories] == ["local"]
    found: list[dict[str, Any]] = repositories[0]["hooks"]
    return found


def runs_here(entry: str) -> list[str]:
    """The command of a hook, run from the environment of this test: under `make test` it is the same one."""
    program, *options = entry.split()
    assert Path(program).parent == Path(".venv/bin")
    assert "VENV := .venv" in MAKEFILE
    return [str(Path(sys.executable).parent / Path(program).name), *options]


def test_the_hooks_are_the_commands_of_make_lint() -> None:
    """The formatter writes in a hook, and pre-commit stops the commit; --force-exclude is for files given by name."""
    assert all(hook["language"] == "system" for hook in hooks())
    commands = [hook["entry"].removeprefix(".venv/bin/").replace(" --force-exclude", "") for hook in hooks()]
    linted = [line.removeprefix("$(BIN)/").removesuffix(" .").replace(" --check", "") for line in recipe("lint")]
    assert commands == linted == ["ruff check", "ruff format", "mypy"]


@pytest.mark.parametrize("hook", hooks(), ids=lambda hook: hook["id"])
def test_the_program_of_a_hook_runs(hook: dict[str, Any]) -> None:
    command = runs_here(hook["entry"])
    done = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(Path(command[0]).name)
    if command[1:]:
        file = Path(__file__).relative_to(ROOT)
        subprocess.run([*command, str(file)], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "pass_filenames" not in hook
    else:
        assert hook["pass_filenames"] is False


def test_pre_commit_accepts_its_file() -> None:
    if find_spec("pre_commit") is None:
        pytest.skip("pre-commit is not installed")
    words = [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")]
    subprocess.run(words, check=True, capture_output=True)
