"""The training loop. `fit` is the loop itself; what it calls stands below it in the order in which it is called."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
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
from .batches import Batches, as_dataset, find_first_tensor
from .errors import MakeweightError, UsageError
from .evaluation import evaluate, share_buffers
from .interrupt import Interrupted, Signals
from .journal import Journal
from .layers import layers
from .optimizers import build_optimizer, learning_rate
from .options import LoopOptions, Stage, StageOptions
from .plugins import Plugins
from .seeding import StepSeed, generator, mix, purpose
from .state import exported_state
from .step import Step, Sum, WithAuxiliary
from .task import Task

LOG_EVERY = 50
"""steps between two looks at the losses, which wait on the device until then"""
ENGINES = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.FSDP)
"""what shards parameters: plugins that look weights up whole cannot work with it yet"""
SMALL = 3 * 64 * 64
"""numbers in an example up to which it is evaluated in large batches"""
AGREE_EVERY = 8
"""steps between two agreements of several processes on whether one was interrupted"""


class Trainer:
    """Trains a model with plugins: `Trainer(model, train_data, eval_data, plugins=[…], epochs=3).fit()`.

    `train_data` and `eval_data` are tensors (x, y), a mapping of tensors, or data sets; `eval_data` is what the
    metrics of each epoch are measured on. Keyword arguments are the options of `LoopOptions`. With `out`, metrics and
    checkpoints are written there, and `resume` goes on from them. Raises UsageError for what cannot be trained.

    Plugins may use: model (unwrapped), accelerator, losses, step (of the run), epoch and progress (of the stage),
    steps_per_epoch, stage, stages, layers, add_auxiliary, sample_batch, fresh_model, generator, log, stop.
    """

    def __init__(self, model: nn.Module, train_data: Any, eval_data: Any = None,
                 plugins: Sequence[object] | dict[str, Any] = (), *, options: LoopOptions | None = None,
                 stages: Sequence[Stage] = (), task: Task | None = None, out: str | Path | None = None,
                 resume: bool = False, accelerator: Accelerator | None = None, **settings: Any) -> None:  # fmt: skip
        self.options = options or LoopOptions(**settings)
        self.task = task or Task()
        self.plugins = Plugins(plugins, Step())
        self.hook = self.plugins.hook
        self.stages = list(stages) or [Stage(self.options, self.plugins.by_name)]
        self.stage, self.stage_number = self.stages[0], 0
        self.accelerator = accelerator or new_accelerator(self.options.precision)
        if self.accelerator.distributed_type in ENGINES:
            kind = self.accelerator.distributed_type.value
            raise UsageError(f"accelerate is set to {kind}: expected one process, or data-parallel ones (MULTI_GPU)")
        self.model = model.to(self.accelerator.device)
        self._blueprint = copy.deepcopy(model).cpu()
        self.losses: dict[str, Callable[[Any, Any], Tensor]] = {"task": self.task.loss}
        self.auxiliary = nn.ModuleDict()
        self.batches = self._batches(as_dataset(train_data, "train_data"), training=True)
        self.steps_per_epoch = len(self.batches)
        small = find_first_tensor(self.batches.data[0]).numel() <= SMALL
        self.test_batch_size = max(self.options.batch_size, 500) if small else self.options.batch_size
        self.eval_batches = None if eval_data is None else self._batches(as_dataset(eval_data, "eval_data"))
        self.step = self.epoch = self.position = self.epochs_begun = self.stage_steps = 0
        self.stopped: str | None = None
        self.metrics: dict[str, float] = {}
        self.out, self.resume = None if out is None else Path(out), resume
        self.journal = Journal(self.out, self.accelerator)
        self.sums: dict[str, Sum] = defaultdict(Sum)  # of each loss over the epoch so far
        self._saved: dict[str, Any] | None = None
        self._is_set_up = False

    def fit(self) -> dict[str, float]:
        """Train to the end of the last stage. Returns the metrics of the last epoch."""
        with self._blamed(), Signals() as self.signals:
            self.set_up()
            self._prepare()
            for number in range(self.stage_number, len(self.stages)):
                self._begin_stage(number)
                while self.epoch < self.stage.options.epochs and (self.stopped is None or self.position):
                    started = perf_counter()
                    for batches in self.batches.epoch(self.epochs_begun, self.position):
                        self._set_learning_rate()
                        self._seed(self.options.seed, self.step, self.accelerator.process_index)
                        self.hook.on_batch(trainer=self, batches=batches)
                        self.step += 1
                        self.position += 1
                        self._after_step()
                    self._end_epoch(perf_counter() - started)
                self._end_stage()
            if self._interrupted():  # while the last epoch was evaluated
                raise Interrupted(self.signals.received)
        return self.metrics

    def set_up(self) -> dict[str, str | None]:
        """Let the plugins shape the model; what each says it will touch, by name. `fit` does it unless it is done."""
        if self._is_set_up:
            return {}
        self._is_set_up = True
        if self.resume and self.out is not None:
            self._saved = snapshot.newest(self)
        said = {}
        for name, plugin in self.plugins.by_name.items():
            if self._saved and name in self._saved["plugins"]:
                with snapshot.fits(self, f"plugin {name!r}"):
                    plugin.load_state_dict(self._saved["plugins"][name])
            with self._blamed(), torch.random.fork_rng():
                torch.manual_seed(mix(self.options.seed, purpose(name)))
                said[name] = self.plugins.call(name, "on_init", trainer=self)
        return said

    def _prepare(self) -> None:
        """Hand the model to accelerate, and put back what a checkpoint holds."""
        mixed = self.accelerator.mixed_precision not in (None, "no")  # accelerate then patches what it is given
        wrap = len(self.auxiliary) > 0 or mixed
        whole = WithAuxiliary(self.model, self.auxiliary) if wrap else self.model
        self._parameters = [parameter for parameter in whole.parameters() if parameter.requires_grad]
        self.prepared = self.accelerator.prepare_model(whole.to(self.accelerator.device).train())
        self._seed = StepSeed(self.accelerator.device)
        if self._saved is not None:
            snapshot.put_back(self, self._saved)
        if self.resume:
            self.journal.forget_after(self.step)

    def _begin_stage(self, number: int) -> None:
        """A new optimizer, and the stage's options in the plugins; the rest only where the stage begins anew."""
        self.stage_number, self.stage = number, self.stages[number]
        for name, holder in self.stage.plugins.items():
            for field in fields(holder):
                if field.init:
                    setattr(self.plugins.by_name[name], field.name, getattr(holder, field.name))
        optimizer = self.accelerator.prepare_optimizer(build_optimizer(self._parameters, self.stage.options))
        self.optimizer: torch.optim.Optimizer = optimizer.optimizer
        # Accelerate's wrappers cost more than a tiny network's step: its `backward` divides by one, and adds a node to
        # the graph for it. Only a gradient scaler needs them.
        scaled = self.accelerator.scaler is not None
        self._update = optimizer if scaled else self.optimizer
        self._run_backward = self.accelerator.backward if scaled else Tensor.backward
        if self._saved is not None:
            snapshot.put_back_optimizer(self, self._saved)
            self._saved = None
        else:
            self.epoch = self.position = self.stage_steps = 0
            self.hook.on_stage_start(trainer=self)
        self.journal.begin(self.stage.options.epochs, self.steps_per_epoch)

    def _set_learning_rate(self) -> None:
        rate = learning_rate(self.stage.options, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def take_step(self, batches: list[Any]) -> Tensor:
        """One optimizer step over its micro-batches: the mean of their losses, detached."""
        for parameter in self._parameters:  # a tenth of the time of optimizer.zero_grad
            parameter.grad = None
        losses = []
        for batch in batches[:-1]:
            with self.accelerator.no_sync(self.prepared):
                losses.append(self._backward(batch, len(batches)))
        loss = self._backward(batches[-1], len(batches))
        if self.stage.options.clip_norm is not None:
            if self.accelerator.scaler is not None:
                self.accelerator.unscale_gradients(self._update)  # accelerate's clipping unscales older stages' too
            nn.utils.clip_grad_norm_(self._parameters, self.stage.options.clip_norm)
        self._update.step()
        return torch.stack([*losses, loss]).mean() if losses else loss

    def _backward(self, batch: Any, micro_batches: int) -> Tensor:
        output = self.task.forward(self.prepared, batch)
        values = [term(batch, output) for term in self.losses.values()]
        loss = values[0]
        for value in values[1:]:
            loss = loss + value
        self._run_backward(loss if micro_batches == 1 else loss / micro_batches)
        for name, value in zip(self.losses, values, strict=True):
            self.sums[name].add(value)
        return loss.detach()

    def _after_step(self) -> None:
        """What happens between two steps: log now and then, write a checkpoint when it is due, stop when told."""
        self.stage_steps += 1
        if self.step % LOG_EVERY == 0:
            self._look()
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
        """Whether any process was told to stop: all of them must ask at the same time."""
        if self.accelerator.num_processes == 1:
            return self.signals.received != 0
        flag = torch.tensor([self.signals.received], device=self.accelerator.device)
        self.signals.received = int(self.accelerator.gather(flag).max())
        return self.signals.received != 0

    def _look(self) -> dict[str, float]:
        """The mean of each loss over the epoch so far. Raises MakeweightError when one is no number any more."""
        done = max(self.position * self.options.accumulate, 1)
        means = {name: float(total) / done for name, total in self.sums.items()}
        for name, mean in means.items():
            if math.isnan(mean):
                raise MakeweightError(
                    f"loss {name!r} is not a number by step {self.step}: try a lower --lr or --clip-norm"
                )
        self.journal.progress(self.epoch, self.position, means)
        return means

    def _end_epoch(self, seconds: float) -> None:
        """Evaluate, let the plugins look at the metrics, log them, write a checkpoint."""
        means = self._over_processes(self._look())
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
        self.stopped = self._agreed_stop()
        self.metrics = metrics
        self.log(metrics)
        self.journal.epoch(self.epoch, metrics)
        over = self.stopped is not None or self.epoch == self.stage.options.epochs
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
        self.journal.end()
        if self.stopped is not None:
            self.journal.say(f"stopped after epoch {self.epoch}: {self.stopped}")
        self.stopped = None
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """Write a checkpoint into the run directory, on the main process."""
        parts = snapshot.take(self)
        if self.out is not None and self.accelerator.is_main_process:
            checkpoint.save(self.out / "checkpoints", self.step, parts)

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """The metric and the loss of the model on the evaluation data, or on other data, over all processes."""
        share_buffers(self.model, self.accelerator)
        batches = self.eval_batches if data is None else self._batches(as_dataset(data, "data"))
        if batches is None:
            raise MakeweightError("there is nothing to evaluate on: give eval_data")
        return evaluate(self.model, batches, self.task, self.accelerator)

    def export(self, path: str | Path) -> Artifact | None:
        """Write the model through the plugins' `on_export`, on the main process; what was written, None on others."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return None
        artifact = Artifact({name: tensor.cpu().clone() for name, tensor in exported_state(self.model).items()})
        with self._blamed():
            self.hook.on_export(trainer=self, artifact=artifact)
        artifacts.write(artifact, path)
        return artifact

    @property
    def progress(self) -> float:
        """Epochs done since the stage began, a fraction within an epoch."""
        return self.stage_steps / self.steps_per_epoch

    def staged(self, plugin: object) -> list[tuple[StageOptions, Any]]:
        """For each stage its options, and an instance of this plugin's class that holds the plugin's own in it."""
        name = next(name for name, each in self.plugins.by_name.items() if each is plugin)
        return [(stage.options, stage.plugins[name]) for stage in self.stages]

    def layers(self, glob: str = "*") -> dict[str, nn.Module]:
        """The model's Linear and Conv layers whose name matches. Raises UsageError when there is none."""
        return layers(self.model, glob)

    def add_auxiliary(self, name: str, module: nn.Module) -> nn.Module:
        """Train and checkpoint a module with the model, outside its layers, its sparsity and the export."""
        self.auxiliary[name] = module.to(self.accelerator.device)
        return self.auxiliary[name]

    def sample_batch(self) -> Any:
        """The first training examples as a micro-batch on the device, the same in every process."""
        return self.batches.first()

    def fresh_model(self) -> nn.Module:
        """A copy, on the CPU, of the model as it was before any plugin touched it."""
        return copy.deepcopy(self._blueprint)

    def generator(self, name: str) -> torch.Generator:
        """A generator on the CPU for one purpose, that moves no other random number."""
        return generator(self.options.seed, purpose(name))

    def log(self, values: dict[str, float]) -> None:
        """Write values to metrics.jsonl and the tracker, with the step and the epoch."""
        self.journal.log({"step": self.step, "epoch": self.epoch, "stage": self.stage_number} | values)

    def stop(self, reason: str) -> None:
        """End the stage after this epoch, in every process."""
        self.stopped = reason

    def _batches(self, data: Any, training: bool = False) -> Batches:
        options, accelerator = self.options, self.accelerator
        size = options.batch_size if training else self.test_batch_size
        return Batches(data, size, accelerator.device, training=training, accumulate=options.accumulate,
                       seed=options.seed, rank=accelerator.process_index, processes=accelerator.num_processes,
                       workers=options.workers, channels_last=options.channels_last)  # fmt: skip

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.plugins.blame(error)
            raise
        finally:
            self.journal.end()
