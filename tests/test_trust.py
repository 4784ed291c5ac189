"""A run folder that was downloaded runs no code, whatever lies in it and wherever one is; one's own runs go on."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from makeweight import UsageError
from makeweight.commands.trust import code_in
from makeweight.references import resolve

from .helpers import ENVIRONMENT, command, here, summary, trainer

TRAINER = Path(sys.executable).parent / "trainer"
PROGRAMS = {"python -m makeweight": command(), "trainer": [str(TRAINER)]}
PAYLOAD = "import pathlib\npathlib.Path({marker!r}).touch()\ndef f(*given): return given[0].sum() * 0\n"
SHADOWS = ["payload", "timm", "imagefolder", "torchvision", "torch", "onnxruntime", "onnx", "onnxscript", "accelerate",
           "sklearn", "numpy", "safetensors", "jsonargparse", "rich", "matplotlib", "makeweight_prune",
           "makeweight_kd"]  # fmt: skip
CODE = {
    # a config.yaml, and what the refusal says of it
    **{key: (f"{key}: payload:f", f"{key} payload:f")
       for key in ("model", "data", "criterion", "forward", "metric")},
    **{f"{key} of timm": (f"{key}: timm:payload", f"{key} timm:payload")
       for key in ("data", "criterion", "forward", "metric")},
    **{f"{key} of imagefolder": (f"{key}: imagefolder:payload", f"{key} imagefolder:payload")
       for key in ("model", "criterion", "forward", "metric")},
    **{f"{key} of torchvision": (f"{key}: torchvision:payload", f"{key} torchvision:payload")
       for key in ("model", "data", "criterion", "forward", "metric")},
    "model with a space": ("model: ' timm:payload'", "model timm:payload"),
    "teacher": ("plugins: [kd]\nkd: {teacher: payload:f}", "kd.teacher payload:f"),
    "teacher of timm": ("plugins: [kd]\nkd: {teacher: timm:payload}", "kd.teacher timm:payload"),
    "teachers": ("plugins: [kd]\nkd: {teacher: [torchvision:resnet18, payload:f]}", "kd.teacher.1 payload:f"),
    "teachers in a word": ("plugins: [kd]\nkd: {teacher: 'torchvision:resnet18,payload:f'}", "kd.teacher payload:f"),
    "teacher's model": ("plugins: [kd]\nkd: {teacher: x, teacher-model: payload:f}", "kd.teacher_model payload:f"),
    "teacher of a stage": (
        "plugins: [kd]\nstages: [{epochs: 1}, {kd: {teacher: payload:f}}]", "stages.1.kd.teacher payload:f"
    ),
    "teacher by an alias": (
        "plugins: [kd]\nkd: {teacher: &t [payload:f]}\nstages: [{kd: {teacher: *t}}]", "payload:f"
    ),
    "table of layers": ("plugins: [prune]\nprune: {sparsity: {'fc*': 'payload:f'}}", "prune.sparsity.fc* payload:f"),
}  # fmt: skip
VERBS = {
    "evaluate": ["evaluate", "model.safetensors"],
    "sensitivity": ["sensitivity", "model.safetensors"],
    "resume": ["--out", ".", "--resume"],
}


def markers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.imported"))


def lay_shadows(folder: Path) -> None:
    """Modules beside a downloaded file that leave a marker when imported, and a plugin that is not installed."""
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(PAYLOAD.format(marker=str(folder / f"{name}.imported")))
    info = folder / "shadow-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shadow\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[makeweight]\nshadow = payload:f\n[makeweight.commands]\nshadow = payload:f\n"
    )


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a file and of modules that nobody asked for, and the working directory."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "payload.py").write_text(PAYLOAD.format(marker=str(folder / "payload.imported")))
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "payload", raising=False)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of a model of timm."""
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("timm")
    words = ["--model", "timm:test_resnet", "--epochs", "1", "--batch-size", "646", "--image-size", "32"]
    trainer(folder, *words, "--plugins", "prune", "--out", "run")
    return folder / "run"


def program(name: str, cwd: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAMS[name], *words], cwd=cwd, env=os.environ | ENVIRONMENT | environment, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip


# Code that a file names.


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", CODE)
def test_code_that_only_a_downloaded_config_names_is_refused_in_one_line(
    name: str, verb: str, downloaded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, said = CODE[name]
    (downloaded / "config.yaml").write_text(text + "\n")
    assert here(*VERBS[verb]) == 2
    shown = capsys.readouterr().err
    assert "config.yaml refers to code, " in shown
    assert said in shown
    assert "to trust it, use --recipe config.yaml" in shown
    assert shown.count("\n") == 1
    assert markers(downloaded) == []


@pytest.mark.parametrize(
    "value", ["payload", "'payload:'", "payload:2", "'payload.f'", "'payload :f'", "'./payload:f'"]
)
@pytest.mark.parametrize("key", ["model", "data", "criterion", "forward", "metric"])
def test_a_name_that_is_no_reference_imports_nothing(key: str, value: str, downloaded: Path) -> None:
    """Each of these had ./payload.py imported before it was found to name no function."""
    (downloaded / "config.yaml").write_text(f"{key}: {value}\n")
    assert here("evaluate", "model.safetensors") == 2
    assert here("--recipe", "config.yaml") == 2
    assert markers(downloaded) == []


def test_whatever_resolve_accepts_is_found_in_a_recipe() -> None:
    accepted = ["a:b", "a.b:c.d", "a-b:c", "_a1._b:C", "ä:b"]
    for reference in accepted:
        assert list(code_in({"kd": {"teacher": f"x, {reference}"}})) == [f"kd.teacher {reference}"]
        with pytest.raises(UsageError, match="cannot be imported"):
            resolve(f"no_{reference}", "model")
    for other in ["2:4", "a", "a:", ":a", "a:2", "2:a", "imagefolder:/data", "a b:c", "a:b\n", "C:\\model"]:
        with pytest.raises(UsageError, match=r"expected package\.module:function"):
            resolve(other, "model")
    plain = {"model": "timm:resnet18", "data": "imagefolder:a:b", "prune": {"pattern": "2:4"},
             "kd": {"teacher": "torchvision:resnet50:IMAGENET1K_V2,one.safetensors"}}  # fmt: skip
    assert list(code_in(plain)) == []
    assert list(code_in({"stages": [plain, {"kd": {"teacher": ["torchvision:resnet50"]}}]})) == []


def test_what_the_command_line_overrides_is_not_the_files(downloaded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = "plugins: [kd]\nmodel: payload:f\nkd: {teacher: payload:f}\nstages: [{kd: {teacher: payload:f}}]\n"
    (downloaded / "config.yaml").write_text(both)
    words = ["--model", "lenet300", "--kd.teacher=initial", "--stages.0.kd.teacher", "initial"]
    for left in range(3):
        assert here("--out", ".", "--resume", "--dry-run", *(word for word in _without(words, left))) == 2
        assert "refers to code, " in capsys.readouterr().err
    assert here("--out", ".", "--resume", "--dry-run", *words) == 0
    assert markers(downloaded) == []


def _without(words: list[str], number: int) -> list[str]:
    pairs = [words[:2], words[2:3], words[3:]]
    return [word for place, pair in enumerate(pairs) if place != number for word in pair]


# Modules beside a file that are called as installed ones are.


@pytest.mark.parametrize("name", PROGRAMS)
def test_modules_of_the_working_directory_are_not_taken_for_installed_ones(
    name: str, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    lay_shadows(tmp_path)
    for words in (
        ["evaluate", "model.safetensors", "--no-latency"],
        ["sensitivity", "model.safetensors", "--layers", "fc", "--sparsities", "0.5"],
        ["--out", ".", "--resume"],
    ):
        done = program(name, tmp_path, *words)
        assert done.returncode == 0, done.stderr
    for words in (["--plugins", "shadow"], ["shadow"]):
        assert program(name, tmp_path, *words).returncode == 2
    assert markers(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "criterion"), [("trainer", "torch.nn:CrossEntropyLoss"), ("python -m makeweight", "mine:loss")]
)
def test_nor_are_they_once_code_of_ones_own_was_named(name: str, criterion: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    lay_shadows(tmp_path)
    (tmp_path / "mine.py").write_text("from torch.nn.functional import cross_entropy as loss\n")
    done = program(name, tmp_path, "evaluate", "model.safetensors", "--no-latency", "--criterion", criterion)
    assert done.returncode == 0, done.stderr
    assert program(name, tmp_path, "--criterion", criterion, "--plugins", "shadow").returncode == 2
    assert markers(tmp_path) == []


def test_timm_is_the_installed_one_even_where_pythonpath_says_otherwise(run: Path, tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text(PAYLOAD.format(marker=str(tmp_path / "timm.imported")))
    path = os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])
    done = program("trainer", tmp_path, "evaluate", str(run / "model.safetensors"), "--no-latency", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert markers(tmp_path) == []


# One's own code.


MINE = """
import my_parts
from torch import nn

def model(input_shape, num_classes):
    from my_late import Flat
    return nn.Sequential(Flat(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that import one another, at once and when they are called; the working directory."""
    (tmp_path / "my_net.py").write_text(MINE)
    (tmp_path / "my_parts.py").write_text("")
    (tmp_path / "my_late.py").write_text("from torch.nn import Flatten as Flat\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


OWN = ["--model", "my_net:model", "--epochs", "1", "--batch-size", "646"]


def test_a_run_of_ones_own_is_resumed_and_evaluated_without_its_recipe(mine: Path) -> None:
    for name, *words in (
        ["trainer", *OWN, "--out", "run"],
        ["python -m makeweight", "--resume", "--out", "run", "--epochs", "2"],
        ["trainer", "--resume", "--out", "run"],
        ["python -m makeweight", "evaluate", "run/model.safetensors", "--no-latency"],
        ["trainer", "sensitivity", "run/model.safetensors", "--sparsities", "0.5"],
    ):
        done = program(name, mine, *words)
        assert done.returncode == 0, done.stderr
    assert summary(mine / "run")["steps"] == 4


@pytest.mark.slow  # several runs
def test_a_run_is_recorded_as_ones_own_by_its_place_and_its_bytes(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(mine / "state"))
    assert here("--epochs", 1, "--batch-size", 646, "--out", "plain") == 0
    assert not (mine / "state").exists()  # it names no code
    assert here(*OWN, "--out", "run") == 0
    (record,) = (mine / "state" / "makeweight" / "trusted").iterdir()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    written = mine / "run" / "config.yaml"
    assert record.read_text() == f"{hashlib.sha256(written.read_bytes()).hexdigest()}  {written}\n"
    resume = ["--resume", "--dry-run", "--out"]
    assert here(*resume, mine / "run") == 0
    shutil.copytree("run", "copy")
    config = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(config + "\n")
    for changed in ("copy", "run"):
        capsys.readouterr()
        assert here(*resume, changed) == 2
        assert f"use --recipe {changed}/config.yaml" in capsys.readouterr().err
        assert here(*resume, changed, "--recipe", f"{changed}/config.yaml") == 0
    Path("run/config.yaml").write_text(config)
    assert here(*resume, "run") == 0


@pytest.mark.slow  # several runs
def test_a_run_that_was_trusted_by_its_recipe_goes_on_as_ones_own(mine: Path) -> None:
    (mine / "run").mkdir()
    (mine / "run" / "config.yaml").write_text("model: my_net:model\nepochs: 1\nbatch_size: 646\n")
    assert here("--resume", "--out", "run") == 2
    assert here("--resume", "--out", "run", "--recipe", "run/config.yaml") == 0
    assert here("--resume", "--out", "run") == 0


@pytest.mark.slow  # several runs
@pytest.mark.parametrize("variables", [{"HOME": "."}, {"HOME": "/dev/null"}, {"XDG_STATE_HOME": "/dev/null"}])
def test_where_nothing_can_be_recorded_a_run_trains_and_resuming_it_asks_for_the_recipe(
    variables: dict[str, str], mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "state")  # relative ones are not used: the working directory is not trusted
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert here(*OWN, "--out", "run") == 0
    assert sorted(path.name for path in mine.iterdir() if path.is_dir() and path.name != "__pycache__") == ["run"]
    capsys.readouterr()
    assert here("--resume", "--out", "run") == 2
    assert "use --recipe run/config.yaml" in capsys.readouterr().err
    assert here("--resume", "--out", "run", "--recipe", "run/config.yaml") == 0


def test_records_are_kept_of_so_many_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from makeweight.commands import trust

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trust, "MOST_RECORDS", 3)
    paths = [tmp_path / f"{number}\n" / "config.yaml" for number in range(5)]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.write_text(f"model: a:b  # {number}\n")
        trust.remember(path, path.read_text())
    assert [trust.is_own(path) for path in paths] == [False, False, True, True, True]
    (tmp_path / "link").symlink_to(paths[4].parent)
    assert trust.is_own(tmp_path / "link" / "config.yaml")


def test_a_plugins_reference_works_from_the_working_directory(mine: Path) -> None:
    assert here(*OWN, "--plugins", "kd", "--kd.teacher", "my_net:model", "--out", "run") == 0
    assert here("--resume", "--out", "run") == 0
    assert mine.joinpath("run", "summary.json").exists()
