"""The output of training: metrics.jsonl, the tracker, one line per epoch, and a progress bar on terminals."""

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

from ..console import console
from ..files.writing import UnwritableError, check_target, json_text, written_aside

LONGEST_LINE = 1 << 20
"""maximum length of a line of metrics.jsonl in bytes; a longer line is damaged"""


class Journal:
    """Logs on the main process only. `out` is the run directory; with None, no file is written."""

    def __init__(self, out: Path | None, accelerator: Accelerator) -> None:
        self.main = accelerator.is_main_process
        self.accelerator = accelerator
        self.path = None if out is None or not self.main else out / "metrics.jsonl"
        self.console = console(quiet=not self.main)
        self.bar: Progress | None = None

    def say(self, text: str) -> None:
        """Print a line on standard output."""
        with said():
            self.console.print(text)

    def warn(self, text: str) -> None:
        """Print a warning on standard error."""
        if self.main:
            print(f"trainer: warning: {text}", file=sys.stderr)

    def log(self, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, with null for numbers that are not finite, and log it to the tracker."""
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
        """Remove damaged lines and lines later than this stage and step, which the resumed run will write again."""
        if self.path is None or not self.path.exists():
            return
        check_target(self.path)
        damaged = []
        with written_aside(self.path) as aside, aside.open("wb") as kept:
            for number, line in enumerate(_lines(self.path), 1):
                if not line.endswith(b"\n"):  # the last line of a run that was killed while writing
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
        """Start the progress bar of a stage, if the output is a terminal."""
        self.epochs, self.steps = epochs, steps_per_epoch
        if self.console.is_terminal and self.main:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task("", total=epochs * steps_per_epoch)
            self.bar.start()

    def progress(self, epoch: int, position: int, losses: dict[str, float]) -> None:
        """Update the progress bar after `epoch` epochs of the stage and `position` further steps."""
        if self.bar is not None:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            done = epoch * self.steps + position
            self.bar.update(self.task, completed=done, description=shown, refresh=True)

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Print the metrics of an epoch. Metrics of parts, such as `sparsity/fc1`, are only in metrics.jsonl."""
        names = [name for name in metrics if name not in ("seconds", "lr") and "/" not in name]
        shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in names)
        self.say(f"epoch {epoch}/{self.epochs}  {shown}  {metrics['seconds']:.1f} s")

    def end(self) -> None:
        """Remove the progress bar, when the stage has ended or was interrupted."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


@contextmanager
def said() -> Iterator[None]:
    """Turn an OSError of standard output, such as a full disk, into a MakeweightError."""
    try:
        yield
    except OSError as error:
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # else flushing the buffer at exit would fail again
        raise UnwritableError(Path("standard output"), error) from error


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their line ends. A line longer than `LONGEST_LINE` is replaced by its end."""
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE):
            while len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                line = b"\0" + file.readline(LONGEST_LINE - 1)
            yield line


def _place(line: bytes) -> tuple[int, int, bool] | None:
    """The (stage, step, ended) of a line of metrics.jsonl, or None if the line is damaged."""
    try:
        values = json.loads(line.decode())
        stage, step, ended = values["stage"], values["step"], values.get("ended", False)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return (stage, step, bool(ended)) if type(stage) is int and type(step) is int else None
