"""The training loop. `Trainer.fit` is the loop; the methods that it calls follow below it in calling order."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from .data.batches import as_dataset
from .errors import MakeweightError
from .models.copies import original_copy
from .models.modes import begin_training
from .options import LoopOptions, Stage, loop_options
from .plugin_manager import Plugins
from .seeding import StepSeed
from .task import Task
from .training import checkpoint, snapshot
from .training.accelerators import check_engine, new_accelerator
from .training.checks import check_model, check_stages
from .training.distributed import mean_of_processes, most_of_processes
from .training.interrupt import Interrupted, Signals
from .training.journal import Journal
from .training.masks import Masks
from .training.network import new_structure_at_end, set_up
from .training.optimizers import learning_rate
from .training.services import Services
from .training.start import Start
from .training.step import Step, Sum
from .training.update import Update

LOG_EVERY = 50
"""steps between reads of the losses (each read synchronises with the device)"""
SMALL = 3 * 64 * 64
"""largest number of elements of an example for evaluation in batches of at least 500"""
AGREE_EVERY = 8
"""steps between the collective checks whether any of several processes was interrupted"""


class Trainer(Services):
    """Trains a model with plugins: `Trainer(model, train_data, eval_data, plugins=[…], epochs=3).fit()`.

    A trainer runs one stage: one optimizer and one loop that trains `model` in place. `Run` trains several stages.
    `train_data` and `eval_data` are tensors (x, y), mappings of tensors, or data sets; the metrics of each epoch are
    measured on `eval_data`. Keyword arguments are the fields of `LoopOptions`. `out` is the directory for metrics and
    checkpoints; `resume` continues from its newest checkpoint. Raises UsageError for invalid arguments.

    Plugins may use: model (unwrapped), accelerator, task, options, losses, masks, auxiliary, step and epochs_begun (of
    the run), stage, epoch and progress (of the stage), steps_per_epoch, resumed, ending, take_step (the core's own
    step, for a plugin that replaces it), and the methods of `Services`.
    """

    def __init__(self, model: nn.Module, train_data: Any, eval_data: Any = None,
                 plugins: Sequence[object] | dict[str, Any] = (), *, options: LoopOptions | None = None,
                 task: Task | None = None, out: str | Path | None = None, resume: bool = False,
                 accelerator: Accelerator | None = None, start: Start | None = None,
                 **settings: Any) -> None:  # fmt: skip
        self.options = loop_options(options, settings, train_data)
        self.task, self.start = Task.own(task), start or Start()
        self.accelerator = accelerator or new_accelerator(self.options.precision)
        check_engine(self.accelerator)
        self.out, self.resume = None if out is None else Path(out), resume
        check_model(model)
        self.original = original_copy(model) if self.start.original is None else self.start.original
        self.model = model.to(self.accelerator.device)
        self.adopt(Plugins(plugins, Step()))
        self._take_data(train_data, eval_data)
        self.step, self.stage, self.epochs_begun = self.start.step, self.start.stage, self.start.epochs_begun
        self.epoch = self.position = self.stage_steps = 0
        self.stopped: str | None = None
        self.resumed = self.ending = self.ended = self.keeps_initial = self._is_set_up = False
        self.metrics: dict[str, float] = {}
        self.sums: dict[str, Sum] = defaultdict(Sum)  # running sums of the losses in this epoch
        self.signals, self.journal = Signals(), Journal(self.out, self.accelerator)

    def adopt(self, plugins: Plugins) -> None:
        """Use these plugin instances, and reset losses, auxiliary modules, masks and all other attachments."""
        self.plugins, self.hook = plugins, plugins.hook
        self.losses: dict[str, Callable[[Any, Any], Tensor]] = {"task": self.task.loss}
        self.auxiliary = nn.ModuleDict()
        self.masks = Masks(self.model, self.accelerator)
        self.is_idle, self.groups, self.changes, self.left_auxiliary, self.left_states = [], [], [], {}, {}
        self.began, self.began_with = None, 0

    def _take_data(self, train_data: Any, eval_data: Any) -> None:
        self.test_batch_size = self.options.batch_size
        self.batches = self._batches(as_dataset(train_data, "train_data"), training=True)
        self.steps_per_epoch = len(self.batches)
        if self.batches.first_tensor().numel() <= SMALL:
            self.test_batch_size = max(self.options.batch_size, 500)
        self.eval_batches = None if eval_data is None else self._batches(as_dataset(eval_data, "eval_data"))

    def fit(self) -> dict[str, float]:
        """Train to the end of the stage. Returns the metrics of the last epoch. A NaN loss raises MakeweightError."""
        with self._blamed(), self.signals:
            self.set_up()
            self._prepare()
            while self._goes_on():
                started = perf_counter()
                for batches in self.batches.epoch(self.epochs_begun, self.position):
                    self._update.set_learning_rate(learning_rate(self.options, self.progress))
                    self._seed(self.options.seed, self.step, self.accelerator.process_index)
                    self.hook.on_batch(trainer=self, batches=batches)
                    self.masks.apply()
                    self.step += 1
                    self.position += 1
                    self._after_step()
                self._end_epoch(perf_counter() - started)
            self._end_stage()
            if self._interrupted():  # during the last evaluation
                raise Interrupted(self.signals.received)
        return self.metrics

    def check(self) -> dict[str, str | None]:
        """Call `on_check` of every plugin. Returns the plugins' lines by name. Raises UsageError."""
        stage = Stage(self.options, self.plugins.by_name)
        return check_stages([stage], self.model, self._settled(), self.task)[0]

    def set_up(self) -> None:
        """Build the structure and run `on_init` of the plugins, once. `fit` calls it."""
        if self._is_set_up:
            return
        self._is_set_up = True
        with self._blamed():
            if not self.start.checked:
                self.check()
            if self.resume and self.start.saved is None:
                self.start.saved = snapshot.newest(self.out, self.journal, self.accelerator)
            set_up(self)

    def _prepare(self) -> None:
        """Prepare the model with accelerate, build the optimizer, and restore the checkpoint if there is one."""
        begin_training(self.model)
        self._update = Update(self)
        self.optimizer = self._update.optimizer
        self._seed = StepSeed(self.accelerator.device)
        self.masks.release()
        if self.start.saved is not None:
            snapshot.put_back(self, self.start.saved)
            self.journal.forget_after(self.stage, self.step, self.ended)
            self.start.saved = None
        else:
            if self.resume:
                self.journal.forget_after(self.stage, self.step, False)
            self.save()
        self.journal.begin(self.options.epochs, self.steps_per_epoch)

    def _goes_on(self) -> bool:
        return self.epoch < self.options.epochs and (self.stopped is None or self.position > 0)

    def take_step(self, batches: list[Any]) -> Tensor:
        """Run one optimizer step over its micro-batches. Returns their mean loss, a detached scalar."""
        return self._update.take(batches)

    def _after_step(self) -> None:
        """Between two steps: check the losses every `LOG_EVERY` steps, write due checkpoints, handle interruption."""
        self.stage_steps += 1
        if self.step % LOG_EVERY == 0:
            self._mean_losses()
        if self.position < self.steps_per_epoch and self._checkpoint_is_due():  # else `_end_epoch` writes it
            self.save()
        if (self.accelerator.num_processes == 1 or self.step % AGREE_EVERY == 0) and self._interrupted():
            with self.signals.held():
                self.save()
                self.accelerator.wait_for_everyone()
            raise Interrupted(self.signals.received)

    def _checkpoint_is_due(self) -> bool:
        every = self.options.checkpoint_every
        return every is not None and self.step % every == 0

    def _interrupted(self) -> bool:
        """Whether any process was interrupted. Collective: every process must call it at the same step."""
        self.signals.received = most_of_processes(self.accelerator, self.signals.received)
        return self.signals.received != 0

    def _mean_losses(self) -> dict[str, float]:
        """The mean of each loss over the epoch so far, on this process. Raises MakeweightError if one is NaN."""
        done = max(self.position * self.options.accumulate, 1)
        means = {name: float(total) / done for name, total in self.sums.items()}
        for name, mean in means.items():
            if math.isnan(mean):
                raise MakeweightError(f"loss {name!r} is NaN by step {self.step}: try a lower --lr or --clip-norm")
        self.journal.progress(self.epoch, self.position, means)
        return means

    def _end_epoch(self, seconds: float) -> None:
        """Evaluate, call `on_epoch_end`, log the metrics, and write a checkpoint."""
        means = mean_of_processes(self.accelerator, self._mean_losses())
        metrics = {f"train_{name}": value for name, value in means.items()} | {"train_loss": sum(means.values())}
        metrics |= {} if self.eval_batches is None else self.evaluate()
        if not all(math.isfinite(value) for value in metrics.values()):
            raise MakeweightError(f"the loss is not finite after step {self.step}: try a lower --lr or --clip-norm")
        metrics |= {"lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds}
        self.epoch += 1
        self.epochs_begun += 1
        self.position = 0
        self.sums.clear()
        self.hook.on_epoch_end(trainer=self, metrics=metrics)
        self.masks.apply()
        if most_of_processes(self.accelerator, self.stopped is not None):
            self.stopped = self.stopped or "requested by another process"
        self.metrics = metrics
        self.log(metrics)
        self.journal.epoch(self.epoch, metrics)
        over = self.stopped is not None or self.epoch == self.options.epochs
        if over or self.options.checkpoint_every is None or self._checkpoint_is_due():
            self.save()

    def _end_stage(self) -> None:
        """Build the structure that plugins choose at the end of the stage, if any, and evaluate it."""
        self.journal.end()
        if self.stopped is not None:
            self.journal.say(f"stopped after epoch {self.epoch}: {self.stopped}")
        if not self.ended and new_structure_at_end(self):
            self.ended = True
            begun = perf_counter()
            self.metrics |= {} if self.eval_batches is None else self.evaluate()
            self.metrics |= {"seconds": perf_counter() - begun}
            self.log(self.metrics | {"ended": 1})
            self.journal.epoch(self.epoch, self.metrics)
            self.save()
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """Write a checkpoint to `out`. Collective: every process must call it; the main process writes."""
        if self.out is not None:
            parts = snapshot.take(self)
            if self.accelerator.is_main_process:
                kept = self.options.keep_checkpoints
                checkpoint.save(self.out / "checkpoints", self.step, parts, self.stage, self.ended, kept)

    @property
    def progress(self) -> float:
        """Epochs completed in the stage, including the fraction of the current epoch."""
        return self.stage_steps / self.steps_per_epoch

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            with self.plugins.blamed():
                yield
        finally:
            self.journal.end()
