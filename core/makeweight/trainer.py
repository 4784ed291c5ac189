"""The training loop. `fit` is the loop itself; what it calls stands below it in the order in which it is called."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from . import artifact as artifacts
from . import checkpoint, snapshot
from .accelerators import new_accelerator
from .artifact import Artifact
from .batches import as_dataset, find_first_tensor
from .checks import check_model, check_stages
from .errors import MakeweightError, UsageError
from .interrupt import Interrupted, Signals
from .journal import Journal
from .masks import Masks
from .modes import begin_training
from .network import new_structure_at_end, set_up
from .optimizers import build_optimizer, learning_rate, parameter_groups
from .options import LoopOptions, Stage
from .plugins import Plugins
from .seeding import StepSeed
from .services import Services
from .start import Start
from .state import plain_state
from .step import Step, Sum, WithAuxiliary, zero_of
from .structure import original_copy, records_of
from .task import Task

LOG_EVERY = 50
"""steps between reads of the losses (each read synchronises with the device)"""
ENGINES = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.FSDP)
"""engines that shard parameters: plugins that look weights up whole cannot work with them yet"""
SMALL = 3 * 64 * 64
"""numbers in an example up to which it is evaluated in large batches"""
AGREE_EVERY = 8
"""steps between two agreements of several processes on whether one was interrupted"""


class Trainer(Services):
    """Trains a model with plugins: `Trainer(model, train_data, eval_data, plugins=[…], epochs=3).fit()`.

    A trainer is one stage: one optimizer, one loop, over the very model that it is given. `Run` runs several.
    `train_data` and `eval_data` are tensors (x, y), a mapping of tensors, or data sets; `eval_data` is what the
    metrics of each epoch are measured on. Keyword arguments are the options of `LoopOptions`. With `out`, metrics and
    checkpoints are written there, and `resume` goes on from them. Raises UsageError for what cannot be trained.

    Plugins may use: model (unwrapped), accelerator, task, options, losses, masks, auxiliary, step and epochs_begun (of
    the run), stage, epoch and progress (of the stage), steps_per_epoch, resumed, ending, take_step (the core's own
    step, for a plugin that replaces it), and the methods of `Services`.
    """

    def __init__(self, model: nn.Module, train_data: Any, eval_data: Any = None,
                 plugins: Sequence[object] | dict[str, Any] = (), *, options: LoopOptions | None = None,
                 task: Task | None = None, out: str | Path | None = None, resume: bool = False,
                 accelerator: Accelerator | None = None, start: Start | None = None,
                 **settings: Any) -> None:  # fmt: skip
        self.options, self.task, self.start = options or LoopOptions(**settings), task or Task(), start or Start()
        self.accelerator = accelerator or new_accelerator(self.options.precision)
        if self.accelerator.distributed_type in ENGINES:
            kind = self.accelerator.distributed_type.value
            raise UsageError(f"accelerate is set to {kind}: expected one process, or data-parallel ones (MULTI_GPU)")
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
        self.sums: dict[str, Sum] = defaultdict(Sum)  # of each loss over the epoch so far
        self.signals = Signals()
        self.journal = Journal(self.out, self.accelerator)

    def adopt(self, plugins: Plugins) -> None:
        """Begin with these plugin instances, and with nothing attached."""
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
        if find_first_tensor(self.batches.data[0]).numel() <= SMALL:
            self.test_batch_size = max(self.options.batch_size, 500)
        self.eval_batches = None if eval_data is None else self._batches(as_dataset(eval_data, "eval_data"))

    def fit(self) -> dict[str, float]:
        """Train to the end of the stage. Returns the metrics of the last epoch."""
        with self._blamed(), self.signals:
            self.set_up()
            self._prepare()
            while self._goes_on():
                started = perf_counter()
                for batches in self.batches.epoch(self.epochs_begun, self.position):
                    self._set_learning_rate()
                    self._seed(self.options.seed, self.step, self.accelerator.process_index)
                    self.hook.on_batch(trainer=self, batches=batches)
                    self.masks.apply()
                    self.step += 1
                    self.position += 1
                    self._after_step()
                self._end_epoch(perf_counter() - started)
            self._end_stage()
            if self._interrupted():  # while the last epoch was evaluated
                raise Interrupted(self.signals.received)
        return self.metrics

    def check(self) -> dict[str, str | None]:
        """Ask every plugin's `on_check`: what each says it will touch, by name. Raises UsageError."""
        stage = Stage(self.options, self.plugins.by_name)
        return check_stages([stage], self.model, self.sample_batch(), self.task)[0]

    def set_up(self) -> None:
        """Give the model its structure, and let the plugins attach to it. `fit` does it unless it is done."""
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
        """Hand the model to accelerate, build the optimizer, and put back what a checkpoint holds."""
        begin_training(self.model)
        mixed = self.accelerator.mixed_precision not in (None, "no")  # accelerate then patches what it is given
        wrap = len(self.auxiliary) > 0 or mixed
        whole = WithAuxiliary(self.model, self.auxiliary) if wrap else self.model
        groups = self._parameter_groups()
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self.prepared = self.accelerator.prepare_model(whole.to(self.accelerator.device))
        self._seed = StepSeed(self.accelerator.device)
        optimizer = self.accelerator.prepare_optimizer(build_optimizer(groups, self.options))
        self.optimizer: torch.optim.Optimizer = optimizer.optimizer
        # Accelerate's wrappers cost more than a tiny network's step: its `backward` divides by one, and adds a node to
        # the graph for it. Only a gradient scaler needs them.
        scaled = self.accelerator.scaler is not None
        self._update = optimizer if scaled else self.optimizer
        self._run_backward = self.accelerator.backward if scaled else Tensor.backward
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

    def _parameter_groups(self) -> list[dict[str, Any]]:
        named = dict(self.model.named_parameters()) | dict(self.auxiliary.named_parameters("auxiliary"))
        return parameter_groups(named, self.groups, self.options.weight_decay)

    def _goes_on(self) -> bool:
        return self.epoch < self.options.epochs and (self.stopped is None or self.position > 0)

    def _set_learning_rate(self) -> None:
        rate = learning_rate(self.options, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def take_step(self, batches: list[Any]) -> Tensor:
        """One optimizer step over its micro-batches: the mean of their losses, detached."""
        for parameter in self._parameters:  # a tenth of the time of optimizer.zero_grad
            parameter.grad = None
        losses = []
        for batch in batches[:-1]:
            with self.accelerator.no_sync(self.prepared):
                losses.append(self._backward(batch, len(batches)))
        loss = self._backward(batches[-1], len(batches))
        if self.options.clip_norm is not None:
            if self.accelerator.scaler is not None:
                self.accelerator.unscale_gradients(self._update)
            nn.utils.clip_grad_norm_(self._parameters, self.options.clip_norm)
        self._update.step()
        return torch.stack([*losses, loss]).mean() if losses else loss

    def _backward(self, batch: Any, micro_batches: int) -> Tensor:
        output = self.task.forward(self.prepared, batch)
        values = [term(batch, output) for term in self.losses.values()]
        loss = values[0]
        for value in values[1:]:
            loss = loss + value
        whole = loss
        for unused in self.is_idle:
            whole = whole + zero_of(unused())
        self._run_backward(whole if micro_batches == 1 else whole / micro_batches)
        for name, value in zip(self.losses, values, strict=True):
            self.sums[name].add(value)
        return loss.detach()

    def _after_step(self) -> None:
        """Between two steps: read the losses now and then, write a checkpoint when it is due, stop when interrupted."""
        self.stage_steps += 1
        if self.step % LOG_EVERY == 0:
            self._mean_losses()
        if self.position < self.steps_per_epoch and self._checkpoint_is_due():  # else the epoch's end writes it
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
        """Whether any process was interrupted: all of them must ask at the same time."""
        if self.accelerator.num_processes == 1:
            return self.signals.received != 0
        flag = torch.tensor([self.signals.received], device=self.accelerator.device)
        self.signals.received = int(self.accelerator.gather(flag).max())
        return self.signals.received != 0

    def _mean_losses(self) -> dict[str, float]:
        """The mean of each loss over the epoch so far. Raises MakeweightError when one is NaN."""
        done = max(self.position * self.options.accumulate, 1)
        means = {name: float(total) / done for name, total in self.sums.items()}
        for name, mean in means.items():
            if math.isnan(mean):
                raise MakeweightError(f"loss {name!r} is NaN by step {self.step}: try a lower --lr or --clip-norm")
        self.journal.progress(self.epoch, self.position, means)
        return means

    def _end_epoch(self, seconds: float) -> None:
        """Evaluate, let the plugins look at the metrics, log them, write a checkpoint."""
        means = self._over_processes(self._mean_losses())
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
        self.stopped = self._agreed_stop()
        self.metrics = metrics
        self.log(metrics)
        self.journal.epoch(self.epoch, metrics)
        over = self.stopped is not None or self.epoch == self.options.epochs
        if over or self.options.checkpoint_every is None or self._checkpoint_is_due():
            self.save()

    def _over_processes(self, values: dict[str, float]) -> dict[str, float]:
        if self.accelerator.num_processes == 1:
            return values
        local = torch.tensor(list(values.values()), dtype=torch.float64, device=self.accelerator.device)
        return dict(zip(values, self.accelerator.reduce(local, "mean").tolist(), strict=True))

    def _agreed_stop(self) -> str | None:
        flag = torch.tensor(int(self.stopped is not None), device=self.accelerator.device)
        if int(self.accelerator.reduce(flag, "sum")) == 0:
            return None
        return self.stopped or "another process asked to"

    def _end_stage(self) -> None:
        """Build the structure that plugins decide on at a stage's end, where one does."""
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
        """Write a checkpoint into the run directory, on the main process."""
        if self.out is not None:
            parts = snapshot.take(self)
            if self.accelerator.is_main_process:
                kept = self.options.keep_checkpoints
                checkpoint.save(self.out / "checkpoints", self.step, parts, self.stage, self.ended, kept)

    def leave(self) -> Start:
        """What the next stage begins from."""
        return Start(
            stage=self.stage + 1, step=self.step, epochs_begun=self.epochs_begun, original=self.original, checked=True,
            states=snapshot.states_of(self), masks=self.masks.state(),
            auxiliary=snapshot.auxiliary_of(self), weights=plain_state(self.model), records=records_of(self.model),
        )  # fmt: skip

    def export(self, path: str | Path) -> Artifact | None:
        """Write the model through the plugins' `on_export`, on the main process; what was written, None on others."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return None
        with self._blamed():
            artifact = self.artifact()
        artifacts.write(artifact, path)
        return artifact

    @property
    def progress(self) -> float:
        """Epochs done since the stage began, a fraction within an epoch."""
        return self.stage_steps / self.steps_per_epoch

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.plugins.blame(error)
            raise
        finally:
            self.journal.end()
