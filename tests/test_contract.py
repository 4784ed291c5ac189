"""The contract with plugins is what `docs/plugins.md` says: names, examples, and that ours use nothing else."""

from __future__ import annotations

import ast
import inspect
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

import makeweight
from makeweight import Trainer, hookspecs, plugin, testing
from makeweight.models.lenets import LeNet300
from makeweight.testing import TWO_BATCHES, run_trainer
from makeweight.training.masks import Masks
from makeweight.training.services import Services

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
CORE = sorted((ROOT / "core" / "makeweight").glob("**/*.py"))
PLUGINS = {folder.name: folder / f"makeweight_{folder.name}" for folder in sorted((ROOT / "plugins").iterdir())}
PLUGIN_FILES = [file for folder in PLUGINS.values() for file in sorted(folder.rglob("*.py"))]
CONTRACT = {"makeweight": makeweight, "makeweight.plugin": plugin, "makeweight.testing": testing}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Names


def reference_tables() -> dict[str, list[list[str]]]:
    """The rows of the page's reference tables, each a list of cells, by what the tables are about."""
    tables: dict[str, list[list[str]]] = {}
    for about, table in re.findall(r"<!-- all names of (.+) -->\n((?:\|.*\n)+)", PAGE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()[2:]]
        tables.setdefault(about, []).extend([cell.strip() for cell in row] for row in rows)
    return tables


def documented(about: str) -> list[str]:
    """What the first column of tables shows: names, or calls."""
    return [shown for row in reference_tables()[about] for shown in re.findall(r"`(.+?)`", row[0])]


def public(owner: type) -> dict[str, Any]:
    """The methods, properties and fields of a class, without those that it inherits."""
    found = {name: value for name, value in vars(owner).items() if not name.startswith("_")}
    own = {each.name: each for each in fields(owner)} if is_dataclass(owner) else {}
    return {**found, **own}


def promised_attributes() -> list[str]:
    """The attributes that the docstring of `Trainer` gives to plugins."""
    text = re.search(r"Plugins may use: (.*?),\s+and the methods of `Services`", Trainer.__doc__ or "", re.DOTALL)
    assert text, "the docstring of Trainer no longer says what plugins may use"
    return re.findall(r"\w+", re.sub(r"(?s)\(.*?\)|\band\b", "", text[1]))


def instance_attributes(owner: type) -> dict[str, Any]:
    """The public attributes that a constructor sets."""
    tree = ast.parse(dedent(inspect.getsource(vars(owner)["__init__"])))
    return {
        each.attr: None
        for each in ast.walk(tree)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and not each.attr.startswith("_")
    }


@cache
def existing() -> dict[str, Mapping[str, Any]]:
    """What there is to document, by what the page's tables are about."""
    conformance = public(testing.PluginConformance)
    return {
        "hooks": {name: each for name, each in vars(hookspecs).items() if hasattr(each, "makeweight_spec")},
        "attributes of Trainer": dict.fromkeys(promised_attributes()),
        "Services": {name: each for name, each in public(Services).items() if callable(each)},
        "Masks": public(Masks),
        "Artifact": public(plugin.Artifact),
        "Structure": public(plugin.Structure),
        "Session": instance_attributes(plugin.Session) | public(plugin.Session),
        "PluginConformance": conformance | dict.fromkeys(testing.PluginConformance.__annotations__),
        "makeweight": {name: getattr(makeweight, name) for name in makeweight.__all__},
        "makeweight.plugin": {name: getattr(plugin, name) for name in plugin.__all__},
        "makeweight.testing": {
            name: each
            for name, each in vars(testing).items()
            if name.isupper() or (not name.startswith("_") and getattr(each, "__module__", "") == testing.__name__)
        },
    }


def call(name: str, function: Any) -> str:
    """A function as the page shows it: its parameters without their types."""
    signature = inspect.signature(function)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    shown = [each for each in bare if each.name not in ("self", "cls")]
    return shortened(f"{name}{signature.replace(parameters=shown, return_annotation=inspect.Signature.empty)}")


def shortened(shown: str) -> str:
    """A call with large defaults (a mode, a limit in bytes) left out: `limit=…`."""
    return re.sub(r"=-?(\d{3,}|\d+e\+\d+)", "=…", shown)


def test_the_page_has_a_table_for_each_part_of_the_contract() -> None:
    assert set(reference_tables()) == set(existing())


@pytest.mark.parametrize("about", reference_tables())
def test_every_name_is_documented_and_every_documented_name_exists(about: str) -> None:
    names = [shown.partition("(")[0] for shown in documented(about)]
    assert len(names) == len(set(names))
    assert set(names) == set(existing()[about])


@pytest.mark.parametrize("about", reference_tables())
def test_a_documented_call_takes_the_arguments_that_the_code_takes(about: str) -> None:
    for shown in documented(about):
        name, parenthesis, _ = shown.partition("(")
        found = existing()[about].get(name)
        found = getattr(found, "__func__", found)
        if parenthesis:
            assert call(name, found) == shortened(shown)


def test_the_hooks_of_the_picture_are_the_hooks() -> None:
    picture = re.search(r"```text\n(on_check .*?)```", PAGE, re.DOTALL)
    assert picture
    files_only = {"on_load", "on_attach", "on_evaluate"}
    assert set(re.findall(r"\bon_\w+", picture[1])) | files_only == set(existing()["hooks"])


@pytest.mark.parametrize("name", ["codec", "conflicts", "record_number", "state_dict", "load_state_dict"])
def test_what_a_class_may_have_beside_hooks_is_documented_and_looked_up(name: str) -> None:
    assert re.search(rf"^\| `{name}\b", PAGE, re.MULTILINE)
    assert any(f'"{name}"' in file.read_text(encoding="utf-8") for file in CORE)


def test_every_attribute_that_the_trainer_promises_is_there() -> None:
    data = torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long)
    trainer = Trainer(LeNet300((1, 2, 2), 10), data, batch_size=2)
    assert len(promised_attributes()) >= 10
    assert [name for name in promised_attributes() if not hasattr(trainer, name)] == []


def test_the_number_of_the_contract_is_the_pages() -> None:
    assert PAGE.startswith(f"# Plugins: contract {plugin.API}\n")
    assert f"`makeweight.plugin.API` is {plugin.API}." in PAGE


# Imports


def imported(file: Path, package: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of all that a file imports, within functions and for type checkers too, `*` where it is all."""
    inside = [package.name, *file.relative_to(package).parts[:-1]]
    for each in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(each, ast.Import):
            yield from ((alias.name, "*") for alias in each.names)
        elif isinstance(each, ast.ImportFrom):
            base = inside[: len(inside) + 1 - each.level] if each.level else []
            module = ".".join([*base, *([each.module] if each.module else [])])
            yield from ((module, alias.name) for alias in each.names)


def strings(tree: ast.AST) -> Iterator[ast.Constant]:
    """The texts of a program, but for docstrings and others that stand alone."""
    alone = {each.value for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    for each in ast.walk(tree):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and each not in alone:
            yield each


@pytest.mark.parametrize("file", PLUGIN_FILES, ids=relative)
def test_a_plugin_imports_only_the_names_of_the_contract(file: Path) -> None:
    for module, name in imported(file, package_of(file)):
        if module.partition(".")[0] == "makeweight":
            assert module in CONTRACT, f"{module} is the core's own"
            assert name in {*existing()[module], "*"}, f"{module} promises no {name}"


@pytest.mark.parametrize("file", PLUGIN_FILES, ids=relative)
def test_a_plugin_reaches_the_core_by_no_other_way(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    known = {*makeweight.__all__, "plugin", "testing"}
    for each in ast.walk(tree):
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "makeweight":
            assert each.attr in known, f"makeweight.{each.attr} is the core's own"
    assert [each.value for each in strings(tree) if re.fullmatch(r"makeweight(\.\w+)+", str(each.value))] == []


@pytest.mark.parametrize("file", PLUGIN_FILES, ids=relative)
def test_no_plugin_imports_another(file: Path) -> None:
    own = package_of(file)
    others = {package.name for package in PLUGINS.values()} - {own.name}
    assert {module for module, _ in imported(file, own) if module.partition(".")[0] in others} == set()


@pytest.mark.parametrize("file", CORE, ids=relative)
def test_the_core_imports_no_plugin(file: Path) -> None:
    modules = {module for module, _ in imported(file, ROOT / "core" / "makeweight")}
    assert {module for module in modules if module.startswith("makeweight_")} == set()


@pytest.mark.parametrize("file", CORE, ids=relative)
def test_the_core_does_nothing_by_a_techniques_name(file: Path) -> None:
    """Docstrings and messages may show one as an example; identifiers, values and comments may not name one."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    code = [each.string for each in tokens if each.type in (tokenize.NAME, tokenize.COMMENT)]
    words = {word for each in code for word in re.findall(r"[A-Z]*[a-z0-9]+|[A-Z]+", each)}
    words |= {str(each.value) for each in strings(tree)}
    assert {word.lower() for word in words} & set(PLUGINS) == set()


@pytest.mark.parametrize("name", PLUGINS)
def test_the_files_of_a_plugin_import_each_other_in_no_circle(name: str) -> None:
    """Imports within functions and for type checkers count."""
    package = PLUGINS[name]
    modules = {module_of(file, package): file for file in sorted(package.rglob("*.py"))}
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        targets = {f"{base}.{each}" if f"{base}.{each}" in modules else base for base, each in imported(file, package)}
        graph[module] = targets & set(modules)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def package_of(file: Path) -> Path:
    return next(package for package in PLUGINS.values() if file.is_relative_to(package))


def module_of(file: Path, package: Path) -> str:
    parts = [package.name, *file.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# torch


def without_torch(statements: str) -> bool:
    """Whether these statements, run in a process of their own, import no torch."""
    code = f"{statements}\nimport sys\nsys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.returncode == 0


def test_importing_the_module_for_plugins_imports_no_torch() -> None:
    assert without_torch("import makeweight\nimport makeweight.plugin")
    assert without_torch("from makeweight.plugin import hookimpl, UsageError, check_equal, StageOptions")


def test_the_column_torch_says_which_names_import_it() -> None:
    marks = {
        shown.partition("(")[0]: row[1] for row in reference_tables()["makeweight.plugin"]
        for shown in re.findall(r"`(.+?)`", row[0])
    }  # fmt: skip
    assert set(marks.values()) == {"", "torch"}
    free = [name for name, mark in marks.items() if not mark]
    assert without_torch(f"from makeweight.plugin import {', '.join(free)}")
    homes: dict[str, set[str]] = {"": set(), "torch": set()}
    for name, mark in marks.items():
        homes[mark].add(plugin._MODULES.get(name, ""))
    assert homes[""] & homes["torch"] == set()


# Examples


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, made known by its entry points."""
    path = tmp_path_factory.mktemp("page")
    for block in blocks("python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name, block
        (path / name[1]).write_text(block)
    info = path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\nSummary: examples\n")
    groups = blocks("toml")[0].partition("[project.entry-points.")[2]
    entries = re.sub(r'\[project\.entry-points\.("?)([\w.]+)\1\]', r"[\2]", f"[project.entry-points.{groups}")
    (info / "entry_points.txt").write_text(entries.replace(' "', " ").replace('"\n', "\n"))
    return path


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run with the page's three plugins."""
    words = ["--plugins", "thin,lowrank,bitmap", *TWO_BATCHES, "--thin.sparsity", "0.8", "--out", "run"]
    run_trainer(words, folder, PYTHONPATH=str(folder))
    return folder / "run"


def test_the_page_shows_five_files_and_every_block_of_python_is_one() -> None:
    assert len(blocks("python")) == 5
    assert len(blocks("toml")) == 1


def test_the_examples_keep_their_promises(run: Path) -> None:
    export = json.loads((run / "summary.json").read_text())["export"]
    densities = {row["name"]: row["density"] for row in export["tensors"] if row["name"].endswith("weight")}
    assert set(densities) == {"fc1.0.weight", "fc1.1.weight", "fc2.0.weight", "fc2.1.weight", "fc3.weight"}
    assert all(density == pytest.approx(0.2, abs=0.04) for density in densities.values())
    assert export["bytes"] < 0.4 * export["dense_bytes"]


def test_the_examples_verb_gives_the_accuracy_of_the_run(run: Path) -> None:
    metric, value = run_trainer(
        ["score", "run/model.safetensors"], run.parent, PYTHONPATH=str(run.parent)
    ).stdout.split()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert metric == "accuracy"
    assert float(value) == pytest.approx(last["accuracy"])


def test_the_examples_tests_run(folder: Path) -> None:
    """Those that train in their own process; what the others do, tests/test_third_party.py does."""
    chosen = "entry_point or outputs_of_the_trained"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, "test_acme.py"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout
