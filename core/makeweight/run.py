"""A run: its stages one after the other, each on a network built anew from the original and the records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from . import snapshot
from .accelerators import new_accelerator
from .artifact import Artifact
from .checks import check_model, check_stages
from .errors import UsageError
from .interrupt import Signals
from .options import LoopOptions, Stage, StageOptions
from .plugins import Plugins
from .start import Start
from .state import restore
from .structure import original_copy, rebuilt, records_of
from .task import Task
from .trainer import Trainer


class Run:
    """Trains stages: `Run(model, train_data, eval_data, [Stage(options, {"prune": Prune()}), …]).fit()`.

    Each stage is a `Trainer` with plugin instances of its own. The given model is left as it is: `run.model` is the
    trained one. A stage begins with a plain network, built from the original and the records of its structure, with the
    weights of the stage before it; steps, seeds, data order and metrics go on. Other arguments as of `Trainer`.
    """

    def __init__(self, model: nn.Module, train_data: Any, eval_data: Any = None, stages: Sequence[Stage] = (), *,
                 task: Task | None = None, out: str | Path | None = None, resume: bool = False,
                 accelerator: Accelerator | None = None) -> None:  # fmt: skip
        self.stages = list(stages) or [Stage(LoopOptions(), {})]
        check_same_loop(self.stages)
        self.train_data, self.eval_data, self.task = train_data, eval_data, task or Task()
        self.out, self.resume = None if out is None else Path(out), resume
        first = self.stages[0].options
        self.accelerator = accelerator or new_accelerator(first.precision)
        check_model(model)
        self.original = original_copy(model)
        self.signals = Signals()
        self.trainer = self._trainer(Start(original=self.original, records=records_of(self.original)))
        self._is_checked = False

    @property
    def model(self) -> nn.Module:
        """The network of the stage that is running, or of the last one."""
        return self.trainer.model

    def check(self) -> list[dict[str, str | None]]:
        """Ask all stages' plugins what they will touch: for each stage a line by plugin. Raises UsageError."""
        self._is_checked = True
        return check_stages(self.stages, self.model, self.trainer.sample_batch(), self.task)

    def fit(self) -> dict[str, float]:
        """Train to the end of the last stage. Returns the metrics of the last epoch."""
        if not self._is_checked:
            self.check()
        with self.signals:
            saved = snapshot.newest(self.out, self.trainer.journal, self.accelerator) if self.resume else None
            if saved is not None:
                there = records_of(self.original)  # those that the checkpoint has beyond are built by the trainer
                self.trainer = self._trainer(
                    Start(stage=self._stage_of(saved), original=self.original, checked=True, records=there, saved=saved)
                )
            self.trainer.start.checked = True
            metrics = self.trainer.fit()
            while self.trainer.stage + 1 < len(self.stages):
                start = self.trainer.leave()
                self.accelerator.free_memory()
                self.trainer = self._trainer(start)
                metrics = self.trainer.fit()
        return metrics

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """The metric and the loss of the network on the evaluation data, or on other data, over all processes."""
        return self.trainer.evaluate(data)

    def export(self, path: str | Path) -> Artifact | None:
        """Write the network through the last stage's `on_export`, on the main process; None on others."""
        return self.trainer.export(path)

    def _trainer(self, start: Start) -> Trainer:
        stage = self.stages[start.stage]
        model = rebuilt(self.original, start.records, Plugins(stage.plugins))
        if start.weights is not None:
            restore(model, start.weights, "the weights of the stage before")
            start.weights = None
        trainer = Trainer(
            model, self.train_data, self.eval_data, stage.plugins, options=stage.options, task=self.task, out=self.out,
            resume=self.resume and start.stage == 0, accelerator=self.accelerator, start=start,
        )  # fmt: skip
        trainer.signals = self.signals
        return trainer

    def _stage_of(self, saved: dict[str, Any]) -> int:
        stage = int(saved["trainer"]["stage"])
        if not 0 <= stage < len(self.stages):
            raise UsageError(f"the checkpoint in {self.out} is of stage {stage + 1}, the recipe has {len(self.stages)}")
        return stage


def check_same_loop(stages: Sequence[Stage]) -> None:
    """Raise UsageError for stages that differ in what holds for a whole run: batch size, seed, precision, …"""
    fixed = [field.name for field in fields(LoopOptions) if field.name not in StageOptions.__dataclass_fields__]
    for number, stage in enumerate(stages, 1):
        if not isinstance(stage.options, LoopOptions):
            raise UsageError(f"stage {number} has {type(stage.options).__name__}: expected LoopOptions")
        for name in fixed:
            given, first = getattr(stage.options, name), getattr(stages[0].options, name)
            if given != first:
                raise UsageError(f"stage {number}: {name} {given}: expected {first}, as in the first stage")
