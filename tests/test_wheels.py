"""Wheels of the core and of every plugin: built from a copy of the tree, read, installed elsewhere and run there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from .helpers import ENVIRONMENT, summary

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
FOLDERS = {"makeweight": "."} | {f"makeweight-{name}": f"plugins/{name}" for name in PLUGINS}
"""the folder of each distribution"""
PACKAGES = {"makeweight": "core/makeweight"} | {
    f"makeweight-{name}": f"plugins/{name}/makeweight_{name}" for name in PLUGINS
}
"""the folder of each import package"""
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]


def table(distribution: str) -> dict[str, Any]:
    """The [project] table of a distribution's pyproject.toml."""
    text = (ROOT / FOLDERS[distribution] / "pyproject.toml").read_text(encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(text)["project"]
    return found


def outside(words: list[object], cwd: Path) -> str:
    """The standard output of a command that sees neither PYTHONPATH nor the user's own packages."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= ENVIRONMENT | {"PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


# What is in the wheels


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository without the output of earlier builds, which could hide an undeclared file."""
    left = shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "__pycache__")
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("clone") / "makeweight", ignore=left))


@pytest.fixture(scope="module")
def files(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    sources = [tree / path for path in FOLDERS.values()]
    outside([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, *sources], tree)
    found = {name: list(folder.glob(f"{name.replace('-', '_')}-[0-9]*.whl")) for name in FOLDERS}
    assert {name: len(each) for name, each in found.items()} == dict.fromkeys(FOLDERS, 1)
    return {name: each[0] for name, each in found.items()}


def contents(wheel: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of a wheel by name: those of its package, and those of its dist-info folder."""
    with ZipFile(wheel) as archive:
        everything = {name: archive.read(name) for name in archive.namelist()}
    info = {name: data for name, data in everything.items() if name.partition("/")[0].endswith(".dist-info")}
    package = {name: data for name, data in everything.items() if name not in info}
    return package, {name.partition("/")[2]: data for name, data in info.items()}


def metadata(wheel: Path) -> Message:
    return Parser().parsestr(contents(wheel)[1]["METADATA"].decode())


def test_there_are_five_plugins() -> None:
    assert PLUGINS == ["cluster", "huffman", "kd", "prune", "qat"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_holds_every_file_of_its_package_and_no_other(name: str, files: dict[str, Path], tree: Path) -> None:
    source = tree / PACKAGES[name]
    expected = {
        path.relative_to(source.parent).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()
    }
    package, _ = contents(files[name])
    assert package.keys() == expected.keys()
    assert package == expected
    assert f"{source.name}/__init__.py" in package
    assert package[f"{source.name}/py.typed"] == b""


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_holds_the_licence(name: str, files: dict[str, Path]) -> None:
    _, info = contents(files[name])
    assert info["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    found = metadata(files[name])
    assert found["License-Expression"] == "Apache-2.0"
    assert found.get_all("License-File") == ["LICENSE"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_says_what_an_index_shows(name: str, files: dict[str, Path], tree: Path) -> None:
    found = metadata(files[name])
    assert (found["Name"], found["Version"]) == (name, table("makeweight")["version"])
    assert 20 < len(found["Summary"]) <= 120
    assert found["Description-Content-Type"] == "text/markdown"
    readme = (tree / FOLDERS[name] / "README.md").read_text(encoding="utf-8")
    assert str(found.get_payload()).strip() == readme.strip()
    assert readme.startswith(f"# {name}\n")
    assert {"compression", "pytorch"} <= set(found["Keywords"].split(","))
    assert SpecifierSet(found["Requires-Python"]) == SpecifierSet(">=3.11")
    classifiers = found.get_all("Classifier", [])
    assert classifiers == metadata(files["makeweight"]).get_all("Classifier")
    assert "Typing :: Typed" in classifiers


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_links_to_pages_that_the_repository_holds(name: str, files: dict[str, Path]) -> None:
    home = "https://github.com/makeweight/makeweight"
    links = dict(link.split(", ", 1) for link in metadata(files[name]).get_all("Project-URL", []))
    folder = FOLDERS[name].replace(".", "docs")
    assert links == {
        "Repository": home,
        "Documentation": f"{home}/tree/main/{folder}",
        "Changelog": f"{home}/blob/main/CHANGELOG.md",
        "Issues": f"{home}/issues",
    }
    assert (ROOT / folder).is_dir()
    assert (ROOT / "CHANGELOG.md").is_file()


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "makeweight"])
def test_a_plugin_accepts_the_minor_version_of_the_core_that_it_comes_with(name: str, files: dict[str, Path]) -> None:
    core = Version(metadata(files["makeweight"])["Version"])
    requirements = [Requirement(each) for each in metadata(files[name]).get_all("Requires-Dist", [])]
    (bound,) = (each.specifier for each in requirements if each.name.startswith("makeweight"))
    assert core in bound
    assert f"{core.major}.{core.minor}.999" in bound
    assert f"{core.major}.{core.minor - 1}.999" not in bound
    assert f"{core.major}.{core.minor + 1}.0" not in bound


@pytest.mark.parametrize("name", FOLDERS)
def test_every_requirement_has_a_floor(name: str, files: dict[str, Path]) -> None:
    requirements = [Requirement(each) for each in metadata(files[name]).get_all("Requires-Dist", [])]
    assert requirements
    assert [each.name for each in requirements if not any(part.operator == ">=" for part in each.specifier)] == []


def test_the_core_requires_no_plugin(files: dict[str, Path]) -> None:
    requirements = metadata(files["makeweight"]).get_all("Requires-Dist", [])
    assert [each for each in requirements if each.startswith("makeweight")] == []


# A fresh environment


@pytest.fixture(scope="module")
def fresh(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment that holds the six wheels and reads their dependencies from this one.

    Copying torch would take minutes. Instead a .pth file appends the folders of the running environment to sys.path.
    Python does not read the .pth files of folders added in this way, so that nothing is imported from the checkout
    where the six are installed in editable mode. Wheels go in before that file: pip would otherwise take the
    distributions of the running environment for installed.
    """
    home = tmp_path_factory.mktemp("fresh") / "env"
    outside([sys.executable, "-m", "venv", "--without-pip", home], home.parent)
    python = home / "bin" / "python"
    outside([*PIP, "--python", python, "install", "--no-deps", "--no-index", *files.values()], home.parent)
    packages = Path(outside([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], home).strip())
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    return home / "bin"


FOUND = """
import importlib, json, sys
from importlib.metadata import entry_points
files = {name: importlib.import_module(name).__file__ for name in sys.argv[1:]}
points = [
    (each.group, each.name, each.value, str(each.dist.locate_file("")), each.load().__module__)
    for group in ("makeweight", "makeweight.commands", "console_scripts")
    for each in entry_points(group=group)
    if each.dist.name.startswith("makeweight")
]
print(json.dumps([files, points]))
"""


def test_packages_and_entry_points_are_those_of_the_wheels(fresh: Path, tmp_path: Path) -> None:
    assert not tmp_path.is_relative_to(ROOT)
    home = fresh.parent
    modules = [Path(path).name for path in PACKAGES.values()]
    imported, points = json.loads(outside([fresh / "python", "-c", FOUND, *modules], tmp_path))
    assert [name for name, file in imported.items() if not Path(file).is_relative_to(home)] == []
    assert [point for point in points if not Path(point[3]).is_relative_to(home)] == []
    declared = {("console_scripts", name, value) for name, value in table("makeweight")["scripts"].items()}
    for each in FOLDERS:
        for group, entries in table(each).get("entry-points", {}).items():
            declared |= {(group, name, value) for name, value in entries.items()}
    assert {tuple(point[:3]) for point in points} == declared
    assert len(points) == len(declared)
    assert all(module.partition(".")[0] in modules for *_, module in points)


def test_both_ways_to_start_it_list_the_plugins_with_their_distributions(fresh: Path, tmp_path: Path) -> None:
    listed = outside([fresh / "trainer", "plugins"], tmp_path)
    rows = [line.split() for line in listed.splitlines() if "makeweight-" in line]
    version = table("makeweight")["version"]
    assert [row[:3] for row in rows] == [[name, f"makeweight-{name}", version] for name in PLUGINS]
    assert outside([fresh / "python", "-m", "makeweight", "plugins"], tmp_path) == listed


@pytest.mark.parametrize("plugins", ["prune,cluster,kd,huffman", "prune,kd,qat,huffman"])
def test_it_trains_evaluates_and_inspects(plugins: str, fresh: Path, tmp_path: Path) -> None:
    """Two runs between them use all five: cluster and qat refuse each other."""
    words = ["--plugins", plugins, "--model", "lenet300", "--data", "digits", "--epochs", "10", "--lr", "0.1"]
    outside([fresh / "trainer", *words, "--out", "run"], tmp_path)
    found, file = summary(tmp_path / "run"), tmp_path / "run" / "model.safetensors"
    assert found["plugins"] == plugins.split(",")
    assert found["export"]["accuracy"] == found["accuracy"] > 0.9
    assert found["export"]["bytes"] == file.stat().st_size < found["export"]["dense_bytes"] / 10
    table = outside([fresh / "trainer", "evaluate", file], tmp_path)
    assert f"{found['accuracy']:.2%}".replace("%", " %") in table
    listed = outside([fresh / "python", "-m", "makeweight", "inspect", file], tmp_path)
    weights = [line.split()[0] for line in listed.splitlines() if ".weight" in line]
    assert sorted(weights) == ["fc1.weight", "fc2.weight", "fc3.weight"]
