"""The core's folders: which of them may import which, and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "core" / "makeweight"
FILES = {
    ".".join(path.relative_to(CORE).with_suffix("").parts): path
    for path in sorted(CORE.rglob("*.py"))
    if "template" not in path.parts
}
ORDER = ("foundations", "data", "models", "files", "training", "trainer", "commands", "contract")
"""each of these may import those before it; the folders carry their own names"""
FOUNDATIONS = {
    "console", "criteria", "discovery", "errors", "hookspecs", "metrics", "options", "outputs", "plugin_manager",
    "references", "seeding", "task",
}  # fmt: skip
TRAINER = {"trainer", "run", "loading"}
CONTRACT = {"__init__", "__main__", "plugin", "testing"}
LONGEST = 250


def room(module: str) -> str:
    """Where a module belongs in the order."""
    if "." in module:
        return module.partition(".")[0]
    homes = {"foundations": FOUNDATIONS, "trainer": TRAINER, "contract": CONTRACT}
    return next(name for name, modules in homes.items() if module in modules)


def runtime_imports(module: str) -> Iterator[str]:
    """The core's modules that a module imports when it runs, in functions too; not those for type checkers alone."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    package = module.split(".")[:-1]

    def walk(node: ast.AST) -> Iterator[ast.ImportFrom]:
        for each in ast.iter_child_nodes(node):
            if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING":
                continue
            if isinstance(each, ast.ImportFrom):
                yield each
            yield from walk(each)

    for node in walk(tree):
        if node.level == 0:
            if node.module is None or node.module.partition(".")[0] != "makeweight":
                continue
            base = node.module.split(".")[1:]
        else:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
        base = [part for part in base if part]
        for alias in node.names:
            inside = ".".join([*base, alias.name])
            yield inside if inside in FILES else ".".join(base) or "__init__"


GRAPH = {module: set(runtime_imports(module)) & set(FILES) for module in FILES if not module.endswith("__init__")}


def test_every_module_is_in_a_room() -> None:
    assert {room(module) for module in FILES} == set(ORDER)
    assert len(GRAPH) > 60
    assert GRAPH["commands.train"] >= {"run", "commands.session", "models.by_name"}  # the reader of imports reads


@pytest.mark.parametrize("module", GRAPH)
def test_imports_between_folders_run_one_way(module: str) -> None:
    place = ORDER.index(room(module))
    later = {each for each in GRAPH[module] if ORDER.index(room(each)) > place}
    assert not later, f"{module} ({room(module)}) imports {', '.join(sorted(later))}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


@pytest.mark.parametrize("module", FILES)
def test_a_file_of_the_core_is_short(module: str) -> None:
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{module} has {lines} lines: give its second subject a file of its own"
