"""A run whose disk is full, whose directory another run has, or that is stopped says so in one line and keeps all."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from makeweight import MakeweightError
from makeweight.commands import finish
from makeweight.commands import train as train_command
from makeweight.files import writing as files
from makeweight.training import checkpoint
from makeweight.training.interrupt import Signals, Stopped
from makeweight.training.journal import Journal

from .helpers import (
    ENVIRONMENT,
    assert_same_run,
    command,
    epochs,
    everything_below,
    here,
    kill_all,
    start,
    summary,
    trainer,
    wait_for,
)
from .test_resume import DATA, MODEL, has_reached

SHORT = ["--epochs", "3", "--plugins", "prune", "--prune.end", "2", "--checkpoint-every", "7"]
MIB = 1 << 20


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1, errors
    return errors


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in everything_below(folder) if (folder / name).is_file()}


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 30 steps with checkpoints at 28 and 30."""
    folder = tmp_path_factory.mktemp("writing")
    trainer(folder, *SHORT, "--out", "run")
    return folder / "run"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts a disk of so many bytes."""
    made: list[Path] = []

    def mount(size: int) -> Path:
        path = tmp_path / f"disk{len(made)}"
        path.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount here")
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted: {done.stderr.strip()}")
        made.append(path)
        return path

    yield mount
    for path in made:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path, left: int = 0) -> Path:
    """Write a file that leaves so many bytes."""
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    with ballast.open("wb") as file:
        file.write(b"x" * max(free.f_bavail * free.f_frsize - left, 0))
    return ballast


# The disk is full.


def test_a_disk_that_is_full_keeps_the_last_checkpoint_and_the_run_can_be_resumed(
    short: Path, mounted: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mounted(MIB)
    assert here(*SHORT, "--out", disk / "run") == 1
    said = error_line(capsys)
    found = re.search(r"/checkpoints/step-0000000(\d\d) cannot be written: .*No space left on device", said)
    assert found, said
    kept = int(found[1]) - 7
    assert f"the checkpoint of step {kept} is kept: continue with --resume" in said
    assert {path.name for path in (disk / "run" / "checkpoints").iterdir()} >= {f"step-{kept:09d}"}
    assert not [name for name in everything_below(disk) if name.endswith(".tmp")]
    subprocess.run(["mount", "-o", f"remount,size={8 * MIB}", str(disk)], check=True)
    assert here("--resume", "--out", disk / "run") == 0
    assert_same_run(short, disk / "run")


def test_a_full_disk_leaves_a_finished_run_as_it_is(
    short: Path, mounted: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mounted(4 * MIB)
    shutil.copytree(short, disk / "run")
    before = contents(disk / "run")
    fill(disk)
    assert here("--resume", "--out", disk / "run") == 1
    said = error_line(capsys)
    assert "cannot be written: No space left on device" in said
    assert "model.safetensors, summary.json, the checkpoint of step 30 are kept" in said
    assert contents(disk / "run") == before


@pytest.mark.parametrize(
    ("function", "path", "kept"),
    [("write_recipe", "config.yaml", ""),
     ("facts", "summary.json", "model.safetensors, the checkpoint of step 10 are kept"),
     ("write_program", "model.pt2", "model.safetensors, summary.json, the checkpoint of step 10 are kept"),
     ("write_report", "report.html", "model.safetensors, summary.json, the checkpoint of step 10 are kept")],
)  # fmt: skip
def test_a_disk_that_is_full_when_a_file_is_written_keeps_those_before_it(
    function: str, path: str, kept: str, mounted: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    module = train_command if hasattr(train_command, function) else finish
    disk, given = mounted(4 * MIB), getattr(module, function)

    def filled(*arguments: object) -> object:
        fill(disk)
        return given(*arguments)

    monkeypatch.setattr(module, function, filled)
    assert here("--epochs", 1, "--export", "safetensors,pt2", "--out", disk / "run") == 1
    said = error_line(capsys)
    assert f"{disk / 'run' / path} cannot be written: No space left on device" in said
    assert kept in said
    there = everything_below(disk / "run")
    assert path not in there
    assert not [name for name in there if name.endswith(".tmp")]
    if "summary.json" in kept:
        assert summary(disk / "run")["export"]["path"] == "model.safetensors"


def limited(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_limit_on_the_size_of_files_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        command(*SHORT, "--out", "run"), cwd=tmp_path, env=os.environ | ENVIRONMENT, capture_output=True, text=True,
        preexec_fn=partial(limited, 200_000), check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "step-000000000 cannot be written" in done.stderr
    assert "File too large" in done.stderr
    assert everything_below(tmp_path / "run" / "checkpoints") == []


def test_a_journal_on_a_limited_disk_names_metrics_jsonl(tmp_path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from accelerate import Accelerator
from makeweight import MakeweightError
from makeweight.training.journal import Journal
journal = Journal(Path({str(tmp_path)!r}), Accelerator(cpu=True))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    for step in range(100):
        journal.log({{"step": step, "stage": 0}})
except MakeweightError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{tmp_path}/metrics.jsonl cannot be written: File too large\n", done.stderr


def test_an_output_that_is_redirected_to_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(*SHORT, "--out", "run"), cwd=tmp_path, env=os.environ | ENVIRONMENT, stdout=full,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    reason = "standard output cannot be written: No space left on device"
    kept = "the checkpoint of step 7 is kept: continue with --resume"
    assert done.stderr == f"trainer: error: {reason} ({kept})\n"


def test_a_directory_that_is_read_only_is_refused_in_one_line(
    short: Path, mounted: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mounted(4 * MIB)
    shutil.copytree(short, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert here("--resume", "--out", disk / "run") == 2
    assert str(disk / "run") in error_line(capsys)
    with pytest.raises(MakeweightError, match=r"step-000000040 cannot be written: Read-only file system"):
        checkpoint.save(disk / "run" / "checkpoints", 40, {"trainer": {"step": 40}})
    with pytest.raises(MakeweightError, match=r"x\.txt cannot be written: Read-only file system"):
        files.write_text(disk / "x.txt", "x")


# One run in a directory.


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "my_data.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


WORKERS = ["--data", "my_data:load", "--batch-size", "64", "--workers", "1"]
SLOW = ["--model", "my_model:build", "--epochs", "4", "--checkpoint-every", "2", "--out", "run"]


def slow(cwd: Path, monkeypatch: pytest.MonkeyPatch, *words: object, seconds: float = 0.3) -> subprocess.Popen[str]:
    """A run into `run` that takes so long for each batch."""
    monkeypatch.setenv("SLOW", str(seconds))
    process = start(cwd, *SLOW, *words)
    monkeypatch.delenv("SLOW")
    return process


def test_a_second_run_in_a_directory_is_refused_until_the_first_one_is_dead(
    cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = slow(cwd, monkeypatch, *WORKERS, seconds=1)
    try:
        wait_for(has_reached(cwd / "run", 2), process)
        process.send_signal(signal.SIGSTOP)
        before = contents(cwd / "run")
        for words in (["--resume", "--out", "run"], [*SLOW, "--resume"], SLOW):
            assert here(*words) == 2
            said = error_line(capsys)
            assert said.startswith("trainer: error: --out run: ")
            assert "in use by another run" in said or words is SLOW
        assert contents(cwd / "run") == before
    finally:
        process.kill()  # its worker, which lives on for seconds, keeps no lock
        process.wait()
    process.communicate()
    trainer(cwd, "--resume", "--out", "run")
    assert summary(cwd / "run")["steps"] == 36
    assert ".lock" not in everything_below(cwd / "run")


def test_runs_that_begin_at_once_in_a_directory_are_one_run(cwd: Path) -> None:
    processes = [start(cwd, *SLOW) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2], errors
    assert sum(each.count("\n") for each in errors) == 1
    assert [line["epoch"] for line in epochs(cwd / "run")] == [1, 2, 3, 4]


def test_a_lock_that_a_dead_run_left_is_no_hindrance(cwd: Path) -> None:
    (cwd / "run").mkdir()
    (cwd / "run" / ".lock").touch()
    assert here(*SLOW, "--epochs", 1) == 0
    assert ".lock" not in everything_below(cwd / "run")


def test_what_killed_runs_left_is_removed_and_nothing_else(short: Path, tmp_path: Path) -> None:
    run = shutil.copytree(short, tmp_path / "run")
    mine = [".notes.tmp", ".x.0123456789abcdef.tmp.txt", "y.0123456789abcdef.tmp", "sub/.z.0123456789abcdef.tmp"]
    (run / "sub").mkdir()
    (tmp_path / ".z.0123456789abcdef.tmp").touch()
    (run / ".link.0123456789abcdef.tmp").symlink_to(tmp_path / "run" / ".notes.tmp")
    for name in (*mine, ".summary.json.0123456789abcdef.tmp"):
        (run / name).touch()
    (run / "checkpoints" / ".step-000000031.0123456789abcdef.tmp").mkdir()
    assert here("--resume", "--out", run) == 0
    there = everything_below(tmp_path)
    kept = [".z.0123456789abcdef.tmp", "run/.link.0123456789abcdef.tmp", *(f"run/{name}" for name in mine)]
    assert [name for name in there if ".tmp" in name] == sorted(kept)


# What is written, and where.


def test_names_of_files_that_are_being_written_are_unforeseeable_and_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for _ in range(3):
        with files.written_aside(tmp_path / "x") as aside:
            assert aside.parent == tmp_path
            seen.append(aside.name)
    assert len(set(seen)) == 3
    assert all(files.ASIDE.fullmatch(name) for name in seen)
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    (tmp_path / "victim").write_text("kept")
    (tmp_path / ".y.0000000000000000.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(MakeweightError, match="y cannot be written: File exists"):
        files.write_text(tmp_path / "y", "stranger's")
    assert (tmp_path / "victim").read_text() == "kept"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_all_files_of_a_run_have_the_mode_of_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        save_file({"w": torch.ones(2)}, tmp_path / "theirs.safetensors")
        checkpoint.save(tmp_path / "checkpoints", 3, {"model": {"w": torch.ones(2)}})
        files.write_text(tmp_path / "x.txt", "x")
    finally:
        os.umask(before)
    found = [tmp_path / "x.txt", *(tmp_path / "checkpoints" / "step-000000003").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o666 & ~umask}
    assert len(found) == 4


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def foreign(path: Path) -> None:
    (path.parent.parent / "foreign").write_text("kept")
    path.symlink_to(path.parent.parent / "foreign")


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


TARGETS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo, "link": dangling, "link elsewhere": foreign, "device": device, "folder": Path.mkdir,
}  # fmt: skip


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", ["model.safetensors", "metrics.jsonl"])
def test_a_file_is_written_to_no_device_pipe_or_link(
    kind: str, name: str, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(short, tmp_path / "run")
    (run / name).unlink()
    TARGETS[kind](run / name)
    before = (run / name).lstat().st_ino
    assert here("--resume", "--out", run) == 1
    said = error_line(capsys)
    assert f"{run / name} cannot be written: a {kind.split()[0]} has this name" in said
    assert (run / name).lstat().st_ino == before
    if kind == "link elsewhere":
        assert (tmp_path / "foreign").read_text() == "kept"


def test_an_export_of_the_library_and_a_packed_file_replace_no_device(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "null"
    target.symlink_to("/dev/null")
    for verb in (["pack"], ["unpack"]):
        assert here(*verb, short / "model.safetensors", "-o", target) == 1
        assert f"{target} cannot be written: a link has this name" in error_line(capsys)
    assert target.is_symlink()
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


DAMAGED = [b"{", b"3", b"[1]", b'"x"', b"\xff\xfe", b"{}", b'{"stage": 0}', b'{"stage": "0", "step": 1}', b"[" * 9999,
           b'{"stage": 0, "step": null}', b'{"stage": 0, "step": 1e3}', b"1" * 9999, b"\0" * (3 << 20),
           b'{"stage": 0, "step": 1, "x": "' + b"y" * (2 << 20) + b'"}', b""]  # fmt: skip


def test_a_damaged_line_of_metrics_is_dropped_with_a_warning(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(short, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    (run / "metrics.jsonl").write_bytes(b"\n".join([lines[0], *DAMAGED, *lines[1:], b""]))
    assert here("--resume", "--out", run) == 0
    said = error_line(capsys)
    assert said == f"trainer: warning: {run}/metrics.jsonl is damaged: line 2, 3, 4, 5, 6 and more dropped\n"
    assert_same_run(short, run)


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"a": [1.0, math.inf], "b": {"c": (math.nan, 2)}, "d": True, "e": 5}
    assert files.json_text(values) == '{"a": [1.0, null], "b": {"c": [null, 2]}, "d": true, "e": 5}\n'
    given = train_command.facts
    monkeypatch.setattr(train_command, "facts", lambda *arguments: given(*arguments) | {"loss": math.nan})
    log = Journal.log
    monkeypatch.setattr(Journal, "log", lambda self, values: log(self, values | {"odd": math.nan, "more": math.inf}))
    assert here("--epochs", 1, "--out", tmp_path / "run") == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    for text in (*lines, (tmp_path / "run" / "summary.json").read_text()):
        json.loads(text, parse_constant=pytest.fail)
    assert epochs(tmp_path / "run")[0]["odd"] is None
    assert summary(tmp_path / "run")["loss"] is None


# Signals.


def ended(process: subprocess.Popen[str], code: int) -> str:
    """The one line that a process has said on standard error."""
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        kill_all(process)
    assert process.returncode == code, errors
    assert errors.count("\n") == 1, errors
    return errors


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_second_signal_ends_a_run_at_once(
    number: signal.Signals, code: int, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = slow(cwd, monkeypatch, seconds=2)
    wait_for(has_reached(cwd / "run", 2), process)
    for _ in range(2):
        with pytest.raises(subprocess.TimeoutExpired):  # it is within the third step
            process.wait(0.5)
        saved = everything_below(cwd / "run" / "checkpoints")
        process.send_signal(number)
    said = ended(process, code)
    assert said == (
        f"trainer: interrupted by {number.name} (the checkpoint of step 2 is kept: continue with --resume)\n"
    )
    assert everything_below(cwd / "run" / "checkpoints") == saved


WAITING = """
import importlib, time
from pathlib import Path
from makeweight.commands import cli

def waiting(*arguments, **named):
    Path("reached").touch()
    time.sleep(60)

where, name = {where!r}.rsplit(".", 1)
module, _, owner = where.partition(":")
module = importlib.import_module("makeweight." + module)
setattr(getattr(module, owner) if owner else module, name, waiting)
raise SystemExit(cli.main({words!r}))
"""
PLACES = [
    "models.by_name.check", "commands.session:Session._load_data", "commands.train.write_recipe", "run:Run.evaluate",
    "files.artifact.write", "commands.train.finish", "commands.finish.write_report",
]  # fmt: skip


@pytest.mark.parametrize("where", PLACES)
def test_a_signal_outside_training_ends_a_run_in_one_line_and_keeps_what_was_there(
    where: str, short: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(short, tmp_path / "run")
    number, code = SIGNALS[len(where) % 2]
    before = contents(run)
    words = ["--resume", "--out", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(where=where, words=words)], cwd=tmp_path,
        env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for((tmp_path / "reached").exists, process)
    process.send_signal(number)
    assert ended(process, code).startswith(f"trainer: interrupted by {number.name}")
    after = contents(run)
    assert set(after) == set(before)
    same = {name for name in after if after[name] == before[name]}
    assert set(after) - same <= {"summary.json"}  # the seconds that it took


def test_a_signal_to_the_whole_group_ends_a_run_and_its_workers_in_one_line(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, code in SIGNALS:
        shutil.rmtree(cwd / "run", ignore_errors=True)
        monkeypatch.setenv("SLOW", "0.5")
        process = subprocess.Popen(
            command(*SLOW, *WORKERS), env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        wait_for(has_reached(cwd / "run", 2), process)
        os.killpg(process.pid, number)
        assert "continue with --resume" in ended(process, code)


def test_signals_are_handled_anew_after_a_run_that_was_stopped() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signals = Signals()

    def twice() -> None:
        with signals:
            assert signals.received == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.received == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)

    for _ in range(2):
        with pytest.raises(Stopped, match="SIGTERM"):
            twice()
        assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(OSError, match="full"), signals.held():
        raise OSError("full")
    assert not signals._holding
