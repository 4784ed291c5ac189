"""CONTRIBUTING.md: the technique that it builds is built, tested and run, step by step; what it names exists.

In the section on a technique, a block of `sh` has commands, and a block of `console` has commands after `$ ` with
their output below. A block of code or Markdown whose first line is a comment with a path is written to this path. A
`diff` replaces lines of the file that it names.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .helpers_environment import Environment
from .test_docs import Block, commands_of, first_difference

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
GUIDE, _, WALK = PAGE.partition("\n## A technique in an afternoon\n")


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks, with the lines at which they begin."""
    start = PAGE.index(text)
    return [
        Block(found[2], found[3], PAGE[: start + found.start()].count("\n") + 1)
        for found in re.finditer(r"^(`{3,})(\w*)\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)
    ]


def path_of(block: Block) -> str | None:
    """The path in the first line of a block that shows a file."""
    named = re.match(r"(?:# |<!-- |--- )(l2/[\w/]+\.\w+)(?: -->)?\n", block.text)
    return named[1] if named else None


def write(block: Block, folder: Path) -> None:
    """Write the file that a block shows, or replace the lines that a diff shows."""
    path = folder / str(path_of(block))
    if block.language != "diff":
        path.write_text(block.text.partition("\n")[2], encoding="utf-8")
        return
    lines = block.text.splitlines(keepends=True)[1:]
    old, new = ("".join(line[1:] for line in lines if line[0] in kinds) for kinds in ("- ", "+ "))
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"CONTRIBUTING.md, line {block.line}: {path} has {text.count(old)} times:\n{old}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def run(block: Block, environment: Environment, folder: Path) -> None:
    """Run the commands of a block, and compare what they print."""
    for command in commands_of(block):
        printed, code = environment.run(command.text, folder)
        where = f"CONTRIBUTING.md, the block at line {block.line}: {command.text}"
        refused = any(line.startswith("trainer: error:") for line in command.expected or ())
        assert (code != 0) == refused, f"{where}\nexit code {code}\n{printed}"
        if command.expected is not None:
            wrong = first_difference(command.expected, printed.splitlines())
            assert wrong is None, f"{where}\n{wrong}\nall of the output:\n{printed}"


@pytest.mark.slow
def test_every_step_to_a_technique_does_what_the_page_shows(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "environment")
    folder = tmp_path / "work"
    folder.mkdir()
    for block in blocks_of(WALK):
        if block.language in ("sh", "console"):
            run(block, environment, folder)
        else:
            write(block, folder)


@pytest.mark.slow
def test_the_technique_passes_the_strict_type_checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from makeweight.commands.cli import main

    assert main(["plugins", "new", "l2"]) == 0
    Path("l2/makeweight_l2/distance.py").unlink()
    for block in blocks_of(WALK):
        if path_of(block):
            write(block, tmp_path)
    done = subprocess.run([sys.executable, "-m", "mypy", "."], cwd="l2", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in 5 source files" in done.stdout


def test_every_file_that_is_written_for_a_technique_is_in_the_page() -> None:
    """A reader changes each file of the example, or reads that it goes."""
    shown = {path_of(block) for block in blocks_of(WALK) if block.language not in ("sh", "console")}
    assert None not in shown
    listed = set(re.findall(r"^l2/\S+$", WALK, re.MULTILINE))
    gone = set(re.findall(r"^rm (\S+)$", WALK, re.MULTILINE))
    assert listed - gone - {"l2/makeweight_l2/py.typed"} <= shown
    assert shown - listed == {"l2/makeweight_l2/penalty.py"}


def test_a_diff_replaces_its_lines_and_is_refused_where_they_are_not(tmp_path: Path) -> None:
    (tmp_path / "l2").mkdir()
    (tmp_path / "l2" / "a.py").write_text("a\nb\nc\n")
    write(Block("diff", "--- l2/a.py\n a\n-b\n+d\n", 1), tmp_path)
    assert (tmp_path / "l2" / "a.py").read_text() == "a\nd\nc\n"
    with pytest.raises(AssertionError, match="0 times"):
        write(Block("diff", "--- l2/a.py\n-b\n+d\n", 1), tmp_path)


# What the rest of the page names


def test_the_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", PAGE, re.MULTILINE))
    assert {"install", "test-fast", "lint", "test"} <= named <= targets


def test_the_files_and_folders_exist() -> None:
    named = re.findall(r"`((?:core|docs|plugins|recipes|tests)/[\w/.]*)`", GUIDE)
    named += [f"core/makeweight/{name}" for name in re.findall(r"`(\w+\.py)`", GUIDE) if name != "hookspecs.py"]
    named += re.findall(r"pytest ((?:tests/\w+\.py ?)+)", GUIDE)[0].split()
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_folder_of_the_core_has_a_row() -> None:
    core = ROOT / "core" / "makeweight"
    rooms = {path.parent.name for path in core.glob("*/__init__.py")}
    assert rooms == set(re.findall(r"`core/makeweight/(\w+)/`", GUIDE))
