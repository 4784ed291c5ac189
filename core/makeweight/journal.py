"""What a run says while it trains: metrics.jsonl, the tracker, and lines or a progress bar for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .console import console
from .files import write_text


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
        self.console.print(text)

    def warn(self, text: str) -> None:
        """A line on standard error."""
        if self.main:
            print(f"trainer: warning: {text}", file=sys.stderr)

    def log(self, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and the same to the tracker."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        self.accelerator.log({key: value for key, value in values.items() if key != "step"}, step=values["step"])

    def forget_after(self, step: int) -> None:
        """Drop the lines that a resumed run will write again."""
        if self.path is not None and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(self.path, "".join(kept))

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
