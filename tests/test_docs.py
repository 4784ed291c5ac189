"""The documentation: its commands and programs are run, its links lead somewhere, and the site is built.

A page is run from top to bottom in a directory of its own:

- A block of `python`, `yaml` or `toml` whose first line is `# name.ext` is written to that file.
- In a block of `console`, lines that begin with `$ ` are commands, and the lines below each are its output.
- A block of `sh` has commands without output. Those of an installation are not run.

In an expected output `…` stands for any text, and as a line of its own for any lines. White space and the length of
rules do not count. Numbers that training gives may differ by a little, since processors round differently.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from .helpers import here, two_processes

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/makeweight/makeweight/"
TESTED_ELSEWHERE = {"plugins.md": "tests/test_contract.py"}
INSTALLATION = ("git clone ", "cd ", "python3 -m venv ", ". .venv/", "pip install ", "make ")
TWO_PROCESSES = "ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 -m makeweight "

PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
MARKDOWN = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("plugins/*/*.md"), *ROOT.glob(".github/**/*.md")]
)


# The blocks of a page


@dataclass
class Block:
    language: str
    text: str
    line: int


@dataclass
class Command:
    text: str
    expected: list[str] | None
    line: int


def blocks_of(page: str) -> list[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [
        Block(found[1], found[2], text[: found.start()].count("\n") + 1)
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def file_of(block: Block) -> str | None:
    """The name of the file that a block shows, if it shows one."""
    named = re.match(r"# ([\w-]+\.(?:py|yaml|toml))\n", block.text)
    return named[1] if named else None


def commands_of(block: Block) -> list[Command]:
    text = re.sub(r"\\\n\s*", "", block.text)
    if block.language == "sh":
        lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
        return [Command(line, None, block.line) for line in lines if line]
    before, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not before.strip(), f"line {block.line}: output before the first command"
    split = [part.splitlines() for part in parts]
    return [Command(lines[0], lines[1:], block.line) for lines in split]


# Running commands


def run_here(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, int]:
    """Output and exit code of a command: `trainer …` and `python …` run in this process."""
    capsys.readouterr()
    words = shlex.split(command)
    code = 0
    if words[0] == "trainer":
        code = here(*words[1:])
    elif words[0] == "python":
        run_program(words)
    elif command.startswith(TWO_PROCESSES):
        return two_processes(Path.cwd(), *words[words.index("-m") :]).stdout, 0
    elif words[0] in ("ls", "cat", "head", "cmp"):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr, done.returncode
    else:
        raise AssertionError(f"a command that this test does not run: {command}")
    captured = capsys.readouterr()
    return captured.out + captured.err, code


def run_program(words: list[str]) -> None:
    """`python FILE …` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words[1:])
        patch.syspath_prepend(Path.cwd())
        runpy.run_path(words[1], run_name="__main__")


@contextlib.contextmanager
def modules_forgotten(folder: Path) -> Iterator[None]:
    """Modules of a page's directory are not found by the next page."""
    try:
        yield
    finally:
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").is_relative_to(folder):
                del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page not in TESTED_ELSEWHERE and blocks_of(page)])
def test_what_a_page_shows_is_what_happens(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with modules_forgotten(tmp_path):
        for block in blocks_of(page):
            name = file_of(block)
            if name is not None:
                Path(name).write_text(block.text, encoding="utf-8")
            if block.language in ("console", "sh"):
                for command in commands_of(block):
                    check(page, command, capsys)


def check(page: str, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command of a page, and compare what it prints."""
    if command.text.startswith(INSTALLATION):
        return
    where = f"docs/{page}, the block at line {command.line}: {command.text}"
    printed, code = run_here(command.text, capsys)
    if command.expected is None:
        assert code == 0, f"{where}\nexit code {code}\n{printed}"
        return
    refused = any(line.startswith("trainer: error:") for line in command.expected)
    assert (code != 0) == refused, f"{where}\nexit code {code}\n{printed}"
    wrong = first_difference(command.expected, printed.splitlines())
    assert wrong is None, f"{where}\n{wrong}\nall of the output:\n{printed}"


# Comparing outputs

NUMBER = re.compile(r"(?<![\w.:/-])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w:/-])(?!\.\w)")
RELATIVE = 0.1
"""what a measured number may differ by: a fraction of it"""
PERCENT = 3.0
"""and one in percent: points"""


def plain(line: str) -> str:
    return re.sub(r"─+", "─", re.sub(r"\s+", " ", line)).strip()


def first_difference(expected: list[str], printed: list[str]) -> str | None:
    """None where the output is the expected one, else the expected line that was not printed."""
    wanted = [line for line in map(plain, expected) if line]
    given = [line for line in map(plain, printed) if line]
    at, anywhere = 0, False
    for line in wanted:
        if line == "…":
            anywhere = True
            continue
        candidates = range(at, len(given)) if anywhere else range(at, min(at + 1, len(given)))
        found = next((i for i in candidates if same(line, given[i])), None)
        if found is None:
            return f"expected: {line}\nprinted:  {given[at] if at < len(given) else 'nothing more'}"
        at, anywhere = found + 1, False
    return None if anywhere or at == len(given) else f"printed, and not expected: {given[at]}"


def same(expected: str, printed: str) -> bool:
    """Whether a line is the expected one: `…` is any text, and measured numbers may differ by a little."""
    pattern, numbers, end = "", [], 0
    for found in re.finditer(rf"{NUMBER.pattern}|…", expected):
        pattern += re.escape(expected[end : found.start()])
        pattern += ".*?" if found[0] == "…" else f"({NUMBER.pattern})"
        numbers += [] if found[0] == "…" else [(found[0], expected[found.end() :].startswith((" %", "%")))]
        end = found.end()
    match = re.fullmatch(pattern + re.escape(expected[end:]), printed)
    return match is not None and all(map(near, numbers, match.groups()))


def near(expected: tuple[str, bool], printed: str) -> bool:
    """Whether a number is near the expected one; counts below 1,000 have to be equal."""
    text, in_percent = expected
    one, other = (float(each.replace(",", "")) for each in (text, printed))
    if in_percent:
        return abs(one - other) <= PERCENT
    if text.isdigit() and one < 1000:
        return one == other
    return abs(one - other) <= RELATIVE * abs(one)


@pytest.mark.parametrize(
    ("expected", "printed", "equal"),
    [
        ("a  b", " a b ", True),
        ("a\n…\nd", "a\nb\nc\nd", True),
        ("a\n…", "a\nb\nc", True),
        ("a", "a\nb", False),
        ("a\nb", "a", False),
        ("20 steps in … s", "20 steps in 1.5 s", True),
        ("20 steps in … s", "21 steps in 1.5 s", False),
        ("file 19,496 10.4 96.94 %", "file 19,600 10.3 95.00 %", True),
        ("file 19,496 10.4 96.94 %", "file 29,600 10.3 95.00 %", False),
        ("file 19,496 10.4 96.94 %", "file 19,600 10.3 85.00 %", False),
        ("fc1 0.9", "fc2 0.9", False),
        ("prune: 3 layers", "prune: three layers", False),
    ],
)
def test_outputs_are_compared_by_text_and_numbers_within_a_tolerance(expected: str, printed: str, equal: bool) -> None:
    assert (first_difference(expected.splitlines(), printed.splitlines()) is None) is equal


# What the pages have to hold


def test_every_verb_has_a_tutorial() -> None:
    verbs = {each.name for each in entry_points(group="makeweight.commands")}
    assert {"plugins", "inspect", "evaluate", "report"} <= verbs
    assert {f"tutorials/{verb}.md" for verb in {*verbs, "train"}} <= set(PAGES)


@pytest.mark.parametrize("verb", sorted({each.name for each in entry_points(group="makeweight.commands")}))
def test_a_tutorial_runs_its_verb(verb: str) -> None:
    commands = [each for block in blocks_of(f"tutorials/{verb}.md") if block.language == "console"
                for each in commands_of(block)]  # fmt: skip
    assert any(each.text.split()[:2] == ["trainer", verb] and each.expected for each in commands)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TESTED_ELSEWHERE])
def test_every_program_of_a_page_is_used(page: str) -> None:
    """A Python block is a file that a command runs or names; there is no code that nothing executes."""
    text = "\n".join(block.text for block in blocks_of(page))
    for block in blocks_of(page):
        if block.language == "python":
            name = file_of(block)
            assert name is not None, f"docs/{page}, line {block.line}: expected a first line '# name.py'"
            stem = Path(name).stem
            assert re.search(rf"^\$ python {name}|\b{stem}:\w|from {stem} import", text, re.MULTILINE), name


def test_the_numbers_of_the_front_page_are_those_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    results = re.findall(r"^\| (LeNet-\S+) \|.*? \| (\S+ bytes), error (\S+ %)", page, re.MULTILINE)
    assert len(results) == 2
    for network, size, error in results:
        row = next(line for line in readme.splitlines() if line.startswith(f"| {network} "))
        assert size in row
        assert error in row


# Links


def without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings, as a code host makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: dict[str, int] = {}
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        shown = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        anchors.add(f"{slug}-{number}" if number else slug)
    return anchors


def local_links(path: Path) -> Iterator[tuple[str, Path, str]]:
    """(link, file, anchor) of the links of a page to files of the repository, relative or by its address."""
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        place, _, anchor = link.partition("#")
        if in_repository := re.match(rf"{re.escape(REPOSITORY)}(?:blob|tree)/main/(.*)", place):
            yield link, ROOT / in_repository[1], anchor
        elif not re.match(r"[a-z]+:", link):
            yield link, (path.parent / place if place else path).resolve(), anchor


def broken_links(path: Path) -> list[str]:
    return [
        link
        for link, target, anchor in local_links(path)
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors_of(target))
    ]


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(path: Path) -> None:
    assert broken_links(path) == []


def test_a_broken_link_and_a_broken_anchor_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `name`, and more\n[a](#a-name-and-more) [b](#b) [c](c.md) [d](page.md) `[e](e.md)`\n")
    assert broken_links(page) == ["#b", "c.md"]


def test_links_of_the_documentation_stay_inside_it() -> None:
    """A relative link out of docs/ works on a code host and not on the site; such files are linked by address."""
    for path in DOCS.rglob("*.md"):
        for link, target, _ in local_links(path):
            assert link.startswith(REPOSITORY) or target.is_relative_to(DOCS), f"{path.name}: {link}"


# The site


def nav_entries(nav: list[Any]) -> list[str]:
    entries: list[str] = []
    for each in nav:
        for value in each.values():
            entries += [value] if isinstance(value, str) else nav_entries(value)
    return entries


def test_the_navigation_names_every_page_and_every_page_that_it_names_exists() -> None:
    from ruamel.yaml import YAML

    config = YAML(typ="safe", pure=True).load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    entries = nav_entries(config["nav"])
    assert len(entries) == len(set(entries))
    assert sorted(entries) == PAGES


def test_the_site_builds_and_a_broken_link_in_it_is_an_error(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install -e '.[docs]'")
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    built = build(tmp_path)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "tutorials" / "train" / "index.html").exists()
    page = tmp_path / "docs" / "start.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n[nowhere](nowhere.md)\n", encoding="utf-8")
    broken = build(tmp_path)
    assert broken.returncode != 0
    assert "nowhere.md" in broken.stderr


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
