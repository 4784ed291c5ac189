"""A run that was killed or interrupted and resumed ends as an unbroken one, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from makeweight import load_tensors
from makeweight.training import checkpoint

from .helpers import ENVIRONMENT, assert_same_run, command, epochs, everything_below, here, start, trainer, wait_for

MODEL = """
import os, time
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(inputs, 48), nn.Linear(48, 32), nn.Linear(32, classes)
        self.norm, self.drop = nn.BatchNorm1d(48), nn.Dropout(0.3)

    def forward(self, x):
        time.sleep(float(os.environ.get("SLOW", 0)))
        x = self.drop(self.norm(self.fc1(x.flatten(1))).relu())
        return self.fc3(self.drop(self.fc2(x).relu()))

def build(input_shape, num_classes):
    return Net(input_shape[0] * input_shape[1] * input_shape[2], num_classes)
"""
DATA = """
import random
import numpy, torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

class Noisy(Dataset):
    # each kind of random number that augmentation draws, and none of them repeated when it is drawn again
    def __init__(self, pixels, labels, noise):
        self.pixels, self.labels, self.noise, self.classes = pixels, labels, noise, list(range(10))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        x = torch.from_numpy(self.pixels[index]).float()[None] / 16
        if self.noise:
            x = x * random.uniform(0.5, 1.5) + float(numpy.random.normal()) * 0.1 + torch.randn(1, 8, 8) * 0.1
        return x, int(self.labels[index])

def load():
    digits = load_digits()
    return (Noisy(digits.images[:640], digits.target[:640], True),
            Noisy(digits.images[640:800], digits.target[640:800], False))
"""
RECIPE = """
stages:
  - {epochs: 1, prune: {sparsity: 0.5}}
  - {epochs: 3, optimizer: adamw, lr: 1e-3, warmup: 1, prune: {sparsity: 0.8, begin: 0.5, every: 3}}
"""
COMMON = ["--model", "my_model:build", "--epochs", "4"]
PRUNE_KD = ["--plugins", "prune,kd,huffman", "--prune.sparsity", "0.8", "--prune.every", "3"]
IN_MEMORY = "sgd, in memory, shifted"
SCENARIOS: dict[str, list[str]] = {
    IN_MEMORY: [*COMMON, *PRUNE_KD, "--augment", "shift"],
    "adamw, read by no worker": [*COMMON, *PRUNE_KD, "--data", "my_data:load", "--batch-size", "64",
                                 "--optimizer", "adamw", "--warmup", "1"],
    "sgd, read by 2 workers": [*COMMON, *PRUNE_KD, "--data", "my_data:load", "--batch-size", "64", "--workers", "2"],
    "accumulated, clipped, in steps, bf16, 2 workers": [
        *COMMON, "--augment", "auto", "--workers", "2", "--accumulate", "2", "--clip-norm", "1", "--schedule", "step",
        "--precision", "bf16"],
    "in the second stage": [*COMMON, *PRUNE_KD, "--recipe", "stages.yaml", "--augment", "crop-flip"],
}  # fmt: skip


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model of dropout, a data set that draws random numbers, and a recipe of two stages."""
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "my_data.py").write_text(DATA)
    (tmp_path / "stages.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def has_reached(run: Path, step: int) -> Callable[[], bool]:
    def reached() -> bool:
        return any(int(path.name[5:14]) >= step for path in (run / "checkpoints").glob("step-*"))

    return reached


def begun(cwd: Path, words: list[str], step: int, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[str]:
    """A slowed run into `broken` that has just written the checkpoint of this step."""
    monkeypatch.setenv("SLOW", "0.02")
    process = start(cwd, *words, "--checkpoint-every", 4, "--out", "broken")
    monkeypatch.delenv("SLOW")
    wait_for(has_reached(cwd / "broken", step), process)
    return process


def killed(cwd: Path, words: list[str], step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    process = begun(cwd, words, step, monkeypatch)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (cwd / "broken" / "model.safetensors").exists()
    saved = checkpoint.newest(cwd / "broken" / "checkpoints", pytest.fail)
    assert saved is not None
    assert saved["trainer"]["position"] > 0, "it was to be killed in the middle of an epoch"


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != IN_MEMORY])
def test_a_run_that_was_killed_and_resumed_ends_as_an_unbroken_one(
    name: str, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = SCENARIOS[name]
    killed(cwd, words, 24 if "stage" in name else 12, monkeypatch)
    if "stage" in name:
        saved = checkpoint.newest(cwd / "broken" / "checkpoints", pytest.fail)
        assert saved is not None
        assert saved["trainer"]["stage"] == 1
    assert here(*words, "--checkpoint-every", 4, "--out", "whole") == 0
    assert here(*words, "--checkpoint-every", 4, "--out", "broken", "--resume") == 0
    assert_same_run(cwd / "whole", cwd / "broken")


def test_a_killed_run_is_resumed_by_its_directory_alone_in_a_process_of_its_own(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = SCENARIOS[IN_MEMORY]
    killed(cwd, words, 16, monkeypatch)
    trainer(cwd, "--resume", "--out", "broken")  # by its config.yaml alone
    assert here(*words, "--out", "whole") == 0
    assert_same_run(cwd / "whole", cwd / "broken")


@pytest.mark.slow  # the workers of a DataLoader are processes
def test_workers_do_not_change_what_is_trained(cwd: Path) -> None:
    words = [*COMMON, "--data", "my_data:load", "--batch-size", "64", "--epochs", "2", "--out"]
    assert here(*words, "none") == 0
    assert here(*words, "two", "--workers", 2) == 0
    assert_same_run(cwd / "none", cwd / "two")


def test_epochs_and_seeds_draw_other_random_numbers(cwd: Path) -> None:
    """What makes a resumed run exact must not make every epoch the same."""
    (cwd / "my_watch.py").write_text(
        "from my_data import Noisy, load as given\n"
        "class Watched(Noisy):\n"
        "    seen = []\n"
        "    def __getitem__(self, index):\n"
        "        x, y = super().__getitem__(index)\n"
        "        self.seen.append((index, float(x.sum())))\n"
        "        return x, y\n"
        "def load():\n"
        "    train, test = given()\n"
        "    return Watched(train.pixels, train.labels, True), test\n"
    )
    words = ["--model", "my_model:build", "--data", "my_watch:load", "--batch-size", 64, "--validation", 0]
    assert here(*words, "--epochs", 2, "--out", "one") == 0
    import my_watch  # type: ignore[import-not-found]

    seen = list(my_watch.Watched.seen)
    first, second = seen[-1280:-640], seen[-640:]
    assert sorted(index for index, _ in first) == sorted(index for index, _ in second) == list(range(640))
    assert [index for index, _ in first] != [index for index, _ in second]
    same = [index for index in range(640) if dict(first)[index] == dict(second)[index]]
    assert same == []
    my_watch.Watched.seen.clear()
    assert here(*words, "--epochs", 1, "--seed", 1, "--out", "other") == 0
    assert [index for index, _ in my_watch.Watched.seen[-640:]] != [index for index, _ in first]


SHORT = ["--epochs", "3", "--plugins", "prune", "--prune.end", "2"]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 30 steps with checkpoints at 28 and 30."""
    folder = tmp_path_factory.mktemp("short")
    trainer(folder, *SHORT, "--checkpoint-every", 7, "--out", "run")
    assert everything_below(folder / "run" / "checkpoints")[0] == "step-000000028"
    return folder / "run"


def test_lines_of_metrics_that_came_after_the_checkpoint_are_written_once(short: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(short, tmp_path / "run")
    shutil.rmtree(broken / "checkpoints" / "step-000000030")
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "ep')  # killed while it wrote
    assert here("--resume", "--out", broken) == 0
    assert_same_run(short, broken)
    assert [line["epoch"] for line in epochs(broken)] == [1, 2, 3]


def test_a_finished_run_that_is_resumed_trains_no_more_and_is_the_same(short: Path, tmp_path: Path) -> None:
    again = shutil.copytree(short, tmp_path / "run")
    for name in ("model.safetensors", "summary.json", "report.html"):
        (again / name).unlink()
    assert here("--resume", "--out", again) == 0
    assert_same_run(short, again)
    assert (again / "report.html").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(short: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(short, tmp_path / "run")
    for name in ("model.safetensors", "summary.json", "report.html"):
        (broken / name).unlink()
    shutil.rmtree(broken / "checkpoints")
    lines = (broken / "metrics.jsonl").read_text().splitlines(keepends=True)
    (broken / "metrics.jsonl").write_text("".join(lines[:2]))
    assert here("--resume", "--out", broken) == 0
    assert_same_run(short, broken)


def test_resume_in_a_directory_that_is_not_there_yet_starts(short: Path, tmp_path: Path) -> None:
    assert here(*SHORT, "--checkpoint-every", 7, "--resume", "--out", tmp_path / "new" / "run") == 0
    assert_same_run(short, tmp_path / "new" / "run")


def test_a_run_can_be_resumed_again_and_again(short: Path, tmp_path: Path) -> None:
    """Every checkpoint of a run leads to the same end."""
    broken = tmp_path / "run"
    for stop in (1, 17):
        words = [*SHORT, "--checkpoint-every", "1", "--out", str(broken), "--resume"]
        code = f"""
import os, signal, sys
from makeweight import trainer
from makeweight.commands.cli import main
after = trainer.Trainer._after_step
def stopping(self):
    after(self)
    if self.step == {stop}:
        os.kill(os.getpid(), signal.SIGKILL)
trainer.Trainer._after_step = stopping
main({words!r})
"""
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | ENVIRONMENT, capture_output=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert here(*SHORT, "--out", broken, "--resume") == 0
    assert_same_run(short, broken)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_saves_and_stops_and_the_resumed_run_ends_as_an_unbroken_one(
    number: signal.Signals, code: int, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = SCENARIOS[IN_MEMORY]
    monkeypatch.setenv("SLOW", "0.02")
    process = start(cwd, *words, "--checkpoint-every", 1000, "--out", "broken")
    monkeypatch.delenv("SLOW")
    wait_for((cwd / "broken" / "metrics.jsonl").exists, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.count("\n") == 1
    assert "--resume" in errors
    saved = [path.name for path in (cwd / "broken" / "checkpoints").iterdir()]
    assert len(saved) == 2  # the stage's first one, and that of the interruption
    assert "step-000000000" in saved
    assert 10 <= int(max(saved)[5:]) < 40
    assert here("--resume", "--out", "broken") == 0
    assert here(*words, "--out", "whole") == 0
    assert_same_run(cwd / "whole", cwd / "broken")


def test_ctrl_c_reaches_the_workers_too_and_still_saves_and_stops(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends it to every process of the group."""
    words = SCENARIOS["sgd, read by 2 workers"]
    process = subprocess.Popen(
        command(*words, "--checkpoint-every", 2, "--out", "broken"), env=os.environ | ENVIRONMENT | {"SLOW": "0.02"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(has_reached(cwd / "broken", 10), process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.count("\n") == 1, errors
    assert here("--resume", "--out", "broken") == 0
    assert here(*words, "--out", "whole") == 0
    assert_same_run(cwd / "whole", cwd / "broken")


# kill -9 at each write of a checkpoint.

WRITER = """
import json, os, signal, sys, tempfile, shutil, io
from contextlib import suppress
from pathlib import Path
import torch
from makeweight.training import checkpoint

torch.set_num_threads(1)
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree"}

def parts(step):
    weights = torch.full((50, 4), float(step))
    return {"trainer": {"step": step}, "model": {"w": weights}, "optimizer": {"state": {0: {"m": weights + 1}}}}

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def save_until(root, step, last):
    # in a child: save, and be killed before the event of this number, or within it where it writes a file
    state = {"count": 0, "on": True}
    def count():
        if state["on"]:
            if state["count"] == last:
                die()
            state["count"] += 1
    def hook(event, arguments):
        if event in EVENTS:
            count()
    sync, save, text = os.fsync, checkpoint.save_file, Path.write_text
    def fsync(descriptor):
        count()
        sync(descriptor)
        count()
    def save_file(tensors, path):
        count()
        save(tensors, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        count()
        path.write_bytes(whole)
    def write_text(self, content, *more):
        text(self, content[: len(content) // 2], *more)
        count()
        return text(self, content, *more)
    os.fsync, checkpoint.save_file, Path.write_text = fsync, save_file, write_text
    sys.addaudithook(hook)
    checkpoint.save(root, step, parts(step))
    state["on"] = False
    os._exit(0)

def whole(root):
    said = []
    found = checkpoint.newest(root, said.append)
    if found is not None:
        step = found["trainer"]["step"]
        assert torch.equal(found["model"]["w"], torch.full((50, 4), float(step)))
        assert torch.equal(found["optimizer"]["state"][0]["m"], torch.full((50, 4), float(step)) + 1)
    return found and found["trainer"]["step"], said

def damage(root):
    path = root / "step-000000030" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

before, damaged = json.loads(sys.argv[1]), json.loads(sys.argv[2])
results, ended, number = [], False, 0
while not ended:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkpoints"
        for step in before:
            checkpoint.save(root, step, parts(step))
        if damaged:
            damage(root)
        child = os.fork()
        if child == 0:
            save_until(root, 30, number)
        status = os.waitpid(child, 0)[1]
        ended = status == 0
        assert ended or os.WTERMSIG(status) == signal.SIGKILL, status
        step, said = whole(root)
        checkpoint.save(root, 40, parts(40))  # the resumed run goes on, and tidies up
        names = sorted(path.name for path in root.iterdir())
        results.append([step, said, whole(root)[0], names])
    number += 1
print(json.dumps(results))
"""


@pytest.mark.parametrize(
    ("before", "damaged", "found"),
    [([], False, [None, 30]), ([10, 20], False, [20, 30]), ([20, 30], True, [20, 30])],
    ids=["the first", "the third", "in place of a damaged one"],
)
def test_kill_9_at_each_write_of_a_checkpoint_leaves_a_valid_one(
    before: list[int], damaged: bool, found: list[int | None]
) -> None:
    words = [sys.executable, "-c", WRITER, json.dumps(before), json.dumps(damaged)]
    done = subprocess.run(words, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) > 30  # so many times it was killed
    steps = [step for step, *_ in results]
    assert steps == sorted(steps, key=lambda step: step or 0)  # the older one up to some write, from there the newer
    assert [steps[0], steps[-1]] == found
    assert set(steps) == set(found)
    for number, (step, said, after, names) in enumerate(results):
        assert after == 40
        assert damaged or said == [], f"killed at {number}: {said}"
        assert "step-000000040" in names
        assert len(names) <= 2, f"killed at {number}: {names} are left"
        assert step is None or damaged or f"step-{step:09d}" in names


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, {"trainer": {"step": step}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004", "step-000000005"]


def test_a_resumed_run_can_be_given_more_epochs(short: Path, tmp_path: Path) -> None:
    longer = shutil.copytree(short, tmp_path / "run")
    assert here("--resume", "--out", longer, "--epochs", 4) == 0
    assert [line["epoch"] for line in epochs(longer)] == [1, 2, 3, 4]
    assert epochs(longer)[:3] == epochs(short)
    assert list(load_tensors(longer / "model.safetensors")) == list(load_tensors(short / "model.safetensors"))
