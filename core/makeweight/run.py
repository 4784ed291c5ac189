"""A run of one or more stages. Each stage trains a network rebuilt from the original model and its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from .errors import UsageError
from .files.artifact import Artifact
from .models.copies import original_copy
from .models.records import records_of
from .models.state import restore
from .models.structure import rebuilt
from .options import LoopOptions, Stage, StageOptions, loop_options
from .plugin_manager import Plugins
from .task import Task
from .trainer import Trainer
from .training import snapshot
from .training.accelerators import new_accelerator
from .training.checks import check_model, check_stages
from .training.interrupt import Signals
from .training.network import fresh, left_by
from .training.start import Start


class Run:
    """Trains stages in order: `Run(model, train_data, eval_data, [Stage(options, {"prune": Prune()}), …]).fit()`.

    Each stage is a `Trainer` with its own plugin instances. `model` itself is not changed; `run.model` is the trained
    network. Each stage starts from a plain network that is rebuilt from the original model and the records and has the
    weights of the previous stage. Step and epoch counters, seeds, data order and metrics continue across stages. The
    other arguments are those of `Trainer`. Raises UsageError as `Trainer` does, and for stages with different loops.
    """

    def __init__(self, model: nn.Module, train_data: Any, eval_data: Any = None, stages: Sequence[Stage] = (), *,
                 task: Task | None = None, out: str | Path | None = None, resume: bool = False,
                 accelerator: Accelerator | None = None) -> None:  # fmt: skip
        self.stages = list(stages) or [Stage(loop_options(None, {}, train_data), {})]
        check_same_loop(self.stages)
        self.train_data, self.eval_data, self.task = train_data, eval_data, task or Task()
        self.out, self.resume = None if out is None else Path(out), resume
        first = self.stages[0].options
        self.accelerator = accelerator or new_accelerator(first.precision)
        check_model(model)
        self.original = original_copy(model)
        self.signals = Signals()
        self.trainer = self._trainer(Start(original=self.original, records=records_of(self.original)))
        self.task = self.trainer.task  # the trainer's copy, which is settled before training
        self._is_checked = False

    @property
    def model(self) -> nn.Module:
        """The network of the current stage; after training, of the last stage."""
        return self.trainer.model

    def check(self) -> list[dict[str, str | None]]:
        """Call `on_check` of all stages. Returns for each stage the plugins' lines by name. Raises UsageError."""
        self._is_checked = True
        return check_stages(self.stages, self.model, self.trainer._settled(), self.task)

    def fit(self) -> dict[str, float]:
        """Train all stages. Returns the metrics of the last epoch."""
        if not self._is_checked:
            self.check()
        with self.signals:
            saved = snapshot.newest(self.out, self.trainer.journal, self.accelerator) if self.resume else None
            if saved is not None:
                there = records_of(self.original)  # the trainer builds further records of the checkpoint
                self.trainer = self._trainer(
                    Start(stage=self._stage_of(saved), original=self.original, checked=True, records=there, saved=saved)
                )
            self.trainer.start.checked = True
            metrics = self.trainer.fit()
            while self.trainer.stage + 1 < len(self.stages):
                start = left_by(self.trainer)
                self.accelerator.free_memory()
                self.trainer = self._trainer(start)
                metrics = self.trainer.fit()
        return metrics

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """The metric and the loss of the network on `data` (by default the evaluation data), over all processes."""
        return self.trainer.evaluate(data)

    def export(self, path: str | Path) -> Artifact | None:
        """Write the network to `path` with the last stage's `on_export`. Returns None outside the main process."""
        return self.trainer.export(path)

    def rehearsal(self) -> Trainer:
        """A trainer of the last stage on a copy of the original network, set up as for training.

        Its plugins are new instances. It has none where one of them decides on a structure, which takes training.
        """
        stage, records = self.stages[-1], records_of(self.original)
        deciding = Plugins(stage.plugins).with_hook("on_structure")
        plugins = {} if deciding else {name: fresh(plugin) for name, plugin in stage.plugins.items()}
        start = Start(original=self.original, records=records, checked=True)
        trainer = Trainer(rebuilt(self.original, records, Plugins(plugins)), self.train_data, None, plugins,
                          options=stage.options, task=self.task, accelerator=self.accelerator, start=start)  # fmt: skip
        trainer.set_up()
        return trainer

    def _trainer(self, start: Start) -> Trainer:
        stage = self.stages[start.stage]
        model = rebuilt(self.original, start.records, Plugins(stage.plugins))
        if start.weights is not None:
            restore(model, start.weights, "the weights of the previous stage")
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
            expected = f"expected one of {len(self.stages)} stages"
            raise UsageError(f"the checkpoint in {self.out} belongs to stage {stage + 1}: {expected}, as in the recipe")
        return stage


def check_same_loop(stages: Sequence[Stage]) -> None:
    """Raise UsageError if stages differ in an option of the whole run, such as batch size, seed or precision."""
    fixed = [field.name for field in fields(LoopOptions) if field.name not in StageOptions.__dataclass_fields__]
    for number, stage in enumerate(stages, 1):
        if not isinstance(stage.options, LoopOptions):
            raise UsageError(f"stage {number} has {type(stage.options).__name__}: expected LoopOptions")
        for name in fixed:
            given, first = getattr(stage.options, name), getattr(stages[0].options, name)
            if given != first:
                raise UsageError(f"stage {number}: {name} {given}: expected {first}, as in the first stage")
