"""`trainer plugins new NAME`: what it writes works, and what it refuses is left as it was."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from makeweight.commands import new_plugin
from makeweight.commands.cli import main
from makeweight.commands.new_plugin import LONGEST, TEMPLATE, bounds, filled_in
from makeweight.errors import MakeweightError
from makeweight.options import Options

from .helpers_environment import Environment

ROOT = Path(__file__).parent.parent
SHORT, LONG = "l2", "a_name_of_thirty_characters_in_"[:LONGEST].strip("_")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The error of `trainer plugins new …` that is refused."""
    assert main(["plugins", "new", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.removeprefix("trainer: error: ").rstrip()


# What it writes


@pytest.mark.slow
def test_a_new_plugin_is_installed_by_pip_and_passes_its_own_tests(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "environment")
    printed, code = environment.run("trainer plugins new demo", tmp_path)
    assert code == 0, printed
    install, test, train = (line.strip() for line in printed.splitlines()[-3:])
    assert (install, test) == ("pip install -e demo", "pytest demo")
    assert train == "trainer --plugins demo --demo.strength 0.1"
    for command in (install, test, f"{train} --dry-run"):
        printed, code = environment.run(command, tmp_path)
        assert code == 0, printed
    assert "demo: strength 0.1 on fc1, fc2, fc3" in printed
    listed, _ = environment.run("trainer plugins", tmp_path)
    assert re.search(r"^demo +makeweight-demo 0\.1\.0$", listed, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [SHORT, LONG])
@pytest.mark.parametrize("config", ["pyproject.toml", str(ROOT / "pyproject.toml")], ids=["its own", "ours"])
def test_the_written_code_passes_the_linter_and_the_formatter(name: str, config: str, folder: Path) -> None:
    assert main(["plugins", "new", name]) == 0
    for words in (["check"], ["format", "--check"]):
        ruff = [str(Path(sys.executable).with_name("ruff")), *words, "--no-cache", "--config", config, "."]
        done = subprocess.run(ruff, cwd=name, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_written_code_passes_the_strict_type_checker(folder: Path) -> None:
    assert main(["plugins", "new", "demo"]) == 0
    done = subprocess.run([sys.executable, "-m", "mypy", "."], cwd="demo", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in 5 source files" in done.stdout


def test_a_new_plugin_has_the_shape_of_ours(folder: Path) -> None:
    assert main(["plugins", "new", "demo"]) == 0
    written = sorted(str(path.relative_to("demo")) for path in Path("demo").rglob("*") if path.is_file())
    assert written == [
        "README.md", "makeweight_demo/__init__.py", "makeweight_demo/distance.py", "makeweight_demo/plugin.py",
        "makeweight_demo/py.typed", "pyproject.toml", "tests/test_demo.py", "tests/test_demo_conformance.py",
    ]  # fmt: skip
    ours = ROOT / "plugins" / "prune"
    assert [path for path in written if not (ours / path.replace("demo", "prune")).exists()] == [
        "makeweight_demo/distance.py"
    ]
    assert list(folder.iterdir()) == [folder / "demo"]
    assert (folder / "demo").stat().st_mode & 0o777 == 0o777 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_nothing_is_left_to_fill_in() -> None:
    for path, text in filled_in("my_name"):
        assert "NAME" not in str(path)
        assert "NAME" not in text
        assert "$" not in text


def test_dashes_of_a_name_become_underscores_and_its_options_have_dashes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a folder").mkdir()
    assert main(["plugins", "new", "my-name", "--into", "a folder"]) == 0
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[-3:]] == [
        "pip install -e 'a folder/my_name'", "pytest 'a folder/my_name'",
        "trainer --plugins my_name --my-name.strength 0.1",
    ]  # fmt: skip
    project = Path("a folder/my_name/pyproject.toml").read_text()
    assert 'name = "makeweight-my-name"' in project
    assert 'my_name = "makeweight_my_name:MyName"' in project


@pytest.mark.parametrize(
    ("release", "expected"), [("0.2.0", ">=0.2,<0.3"), ("0.10.3.dev1", ">=0.10,<0.11"), ("1.4.2", ">=1,<2")]
)
def test_a_new_plugin_requires_the_versions_of_makeweight_that_keep_the_contract(release: str, expected: str) -> None:
    assert bounds(release) == expected


def test_the_list_of_plugins_does_not_import_the_template() -> None:
    code = (
        "import sys\nfrom makeweight.commands.cli import main\nmain(['plugins'])\n"
        "print(sorted(sys.modules.keys() & {'torch', 'makeweight.commands.new_plugin', 'safetensors'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# What it refuses


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Demo", "demo"), ("MyName", "my_name"), ("2x", "x"), ("_x", "x"), ("a__b", "a_b"), ("x-", "x"), ("../x", "x"),
     ("my.name", "my_name"), ("a b", "a_b"), ("é", None), ("", None), ("7", None), ("Class", None), ("Prune", None)],
)  # fmt: skip
def test_a_name_of_other_characters_is_refused_with_one_that_is_near(
    name: str, hint: str | None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = f"NAME {name}: expected lower-case letters, digits and dashes, a letter first"
    assert refusal(capsys, name) == expected + (f": did you mean {hint!r}?" if hint else "")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("prune", "an installed plugin ('trainer plugins' lists them)"),
        *((name, "an option of the trainer ('trainer --help' lists them)") for name in ("epochs", "batch-size", "lr")),
        *((name, "an option of the trainer") for name in ("help", "recipe", "version")),
        ("class", "a keyword of Python"), ("match", "a keyword of Python"),
        ("json", "a module of Python's standard library"),
        ("core", "the core's own"), ("makeweight", "the core's own"),
        ("task", "the name of a loss"), ("loss", "the name of a loss"),
    ],
)  # fmt: skip
def test_a_name_that_is_taken_is_refused_with_the_reason(
    name: str, reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = name.replace("-", "_")
    assert refusal(capsys, name) == f"NAME {name}: expected a name that is free: {shown} is {reason}"
    assert list(folder.iterdir()) == []


def test_no_option_of_the_trainer_is_the_name_of_a_new_plugin() -> None:
    for name in Options.__dataclass_fields__:
        with pytest.raises(MakeweightError, match="option of the trainer"):
            new_plugin.checked_name(name)


def test_a_class_that_is_imported_beside_it_is_not_the_name_of_the_new_one() -> None:
    imported = set()
    for file in ("makeweight_NAME/plugin.py.in", "tests/test_NAME.py.in"):
        lines = re.findall(r"^ *from [\w.]+ import (.*)", (TEMPLATE / file).read_text(), re.MULTILINE)
        imported |= {name for line in lines for name in re.findall(r"\b[A-Z]+[a-z]\w*", line)}
    assert imported == {"Any", "MakeweightError", "Tensor", "Trainer", "UsageError"}
    for name in imported:
        with pytest.raises(MakeweightError, match="expected a name that is free"):
            new_plugin.checked_name(re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower())


def test_a_name_that_is_too_long_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "x" * 31) == f"NAME {'x' * 31}: expected at most 30 characters"
    assert main(["plugins", "new", "x" * 30]) == 0


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_what_is_there_already_is_left_as_it_is(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = folder / "demo"
    if kind == "folder":
        there.mkdir()
    elif kind == "file":
        there.write_text("mine")
    else:
        there.symlink_to("nowhere")
    before = there.lstat()
    assert refusal(capsys, "demo") == "NAME demo: expected a name whose folder is not there yet: demo exists"
    assert there.lstat() == before
    assert list(folder.iterdir()) == [there]


@pytest.mark.parametrize("into", ["nowhere", "file"])
def test_a_folder_to_write_into_must_exist(into: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "file").touch()
    assert refusal(capsys, "demo", "--into", into) == f"--into {into}: expected a folder that exists"
    assert list(folder.iterdir()) == [folder / "file"]


def test_a_failure_to_write_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Path.write_text, []

    def full_after_three(path: Path, text: str, **options: str) -> int:
        written.append(path)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full_after_three)
    assert main(["plugins", "new", "demo"]) == 1
    assert capsys.readouterr().err == "trainer: error: demo cannot be written: No space left on device\n"
    assert len(written) == 4
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["new"], "the following arguments are required: NAME (see 'trainer plugins new --help')"),
        (["new", "demo", "--int", "x"], "unrecognized arguments: --int x (see 'trainer plugins --help')"),
    ],
)
def test_words_that_are_missing_or_unknown_are_one_line(
    words: list[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugins", *words]) == 2
    assert capsys.readouterr().err == f"trainer: error: {expected}\n"
    assert list(folder.iterdir()) == []


def test_another_word_than_new_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "nwe"]) == 2
    error = capsys.readouterr().err
    assert "'nwe'" in error
    assert "new" in error.replace("nwe", "")
    assert error.count("\n") == 1
