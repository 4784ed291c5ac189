"""What a run says while it trains: metrics.jsonl, the tracker, and lines or a progress bar for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .console import console
from .files import UnwritableError, check_target, json_text, written_aside

LONGEST_LINE = 1 << 20
"""bytes of a line of metrics.jsonl; a longer one is damage"""


class Journal:
    """Writes on the main process, and only there. `out` is the run directory, None to write no file."""

    def __init__(self, out: Path | None, accelerator: Accelerator) -> None:
        self.main = accelerator.is_main_process
        self.accelerator = accelerator
        self.path = None if out is None or not self.main else out / "metrics.jsonl"
        self.console = console(quiet=not self.main)
        self.bar: Progress | None = None

    def say(self, text: str) -> None:
        """A line for people."""
        with said():
            self.console.print(text)

    def warn(self, text: str) -> None:
        """A line on standard error."""
        if self.main:
            print(f"trainer: warning: {text}", file=sys.stderr)

    def log(self, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, numbers that are not finite as null, and the same to the tracker."""
        if self.path is not None:
            try:
                check_target(self.path)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json_text(values))
            except OSError as error:
                raise UnwritableError(self.path, error) from error
        self.accelerator.log({key: value for key, value in values.items() if key != "step"}, step=values["step"])

    def forget_after(self, stage: int, step: int, ended: bool) -> None:
        """Drop the lines that a resumed run will write again, those of later stages and steps, and damaged ones."""
        if self.path is None or not self.path.exists():
            return
        check_target(self.path)
        damaged = []
        with written_aside(self.path) as aside, aside.open("wb") as kept:
            for number, line in enumerate(_lines(self.path), 1):
                if not line.endswith(b"\n"):  # the last one, of a run that was killed while it wrote it
                    break
                place = _place(line)
                if place is None:
                    damaged.append(str(number))
                elif place <= (stage, step, ended):
                    kept.write(line)
        if damaged:
            shown = ", ".join(damaged[:5]) + " and more" * (len(damaged) > 5)
            self.warn(f"{self.path} is damaged: line {shown} dropped")

    def begin(self, epochs: int, steps_per_epoch: int) -> None:
        """A stage begins: on a terminal a bar counts its steps."""
        self.epochs, self.steps = epochs, steps_per_epoch
        if self.console.is_terminal and self.main:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task("", total=epochs * steps_per_epoch)
            self.bar.start()

    def progress(self, epoch: int, position: int, losses: dict[str, float]) -> None:
        """Move the bar: `epoch` epochs of the stage and `position` steps are done."""
        if self.bar is not None:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            done = epoch * self.steps + position
            self.bar.update(self.task, completed=done, description=shown, refresh=True)

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """The line of an epoch; parts of a metric, as `sparsity/fc1` is of `sparsity`, are left to metrics.jsonl."""
        names = [name for name in metrics if name not in ("seconds", "lr") and "/" not in name]
        shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in names)
        self.say(f"epoch {epoch}/{self.epochs}  {shown}  {metrics['seconds']:.1f} s")

    def end(self) -> None:
        """The stage is over, or was broken off."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


@contextmanager
def said() -> Iterator[None]:
    """Turn a failure to write to standard output, as to a file on a full disk, into an error of one line."""
    try:
        yield
    except OSError as error:
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # what is left in the buffer would fail again at the end
        raise UnwritableError(Path("standard output"), error) from error


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends; of one that is too long only the end."""
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE):
            while len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                line = b"\0" + file.readline(LONGEST_LINE - 1)
            yield line


def _place(line: bytes) -> tuple[int, int, bool] | None:
    """Where in a run a line of metrics was written, None for a damaged one; plugins' own lines have no stage's end."""
    try:
        values = json.loads(line.decode())
        stage, step, ended = values["stage"], values["step"], values.get("ended", False)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return (stage, step, bool(ended)) if type(stage) is int and type(step) is int else None
