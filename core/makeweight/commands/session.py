"""The setup shared by commands that train or evaluate: task, accelerator, data and network."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from ..console import console
from ..data import by_name as datasets
from ..data.batches import Batches, as_dataset, subset
from ..errors import MakeweightError, UsageError
from ..files.artifact import is_export
from ..loading import load_any, load_plain
from ..models import by_name as models
from ..models import pretrained
from ..models.state import restore
from ..options import Options
from ..task import Task
from ..training.accelerators import new_accelerator
from ..training.evaluation import evaluate
from ..training.settling import settle
from .arguments import parse
from .weights import give_weights, on_statistics

EVALUATED = 500
"""batch size of evaluation"""


class Session:
    """The task, the accelerator, the data and the network of a set of options. `out` is the tracker's directory.

    Raises UsageError if the model, the data, the metric or another name in the options does not exist.
    """

    def __init__(self, options: Options, out: Path | None = None) -> None:
        models.check(options.model)
        datasets.check(options.data)
        self.options = options
        self.plugins: dict[str, Any] = {}  # plugin instances by name, set by `of_file`
        self.task = Task.named(options.criterion, options.forward, options.metric)
        self.accelerator = new_accelerator(options.precision, options.tracker if out else None, out)
        self.trained = pretrained.of_library(options.model, options.weights)
        self.data = self._load_data()
        self.remarks = on_statistics(options.data, self.data.input_shape, self.trained)  # lines for the user

    @classmethod
    def of_file(cls, arguments: argparse.Namespace) -> Session:
        """The session of a verb that evaluates `arguments.file`.

        The recipe is --recipe, or config.yaml in the folder of the file; `arguments.options` override it. That
        config.yaml may be an untrusted download: it must not refer to code unless it is trusted. Raises UsageError.
        """
        named = ["--recipe", arguments.recipe] if arguments.recipe else []
        configuration = parse([*named, *arguments.options], beside=arguments.file.parent / "config.yaml")
        for line in configuration.remarks:
            console().print(line)
        session = cls(configuration.options)
        session.plugins = configuration.plugins
        return session

    def _load_data(self) -> datasets.Data:
        """The data. The main process loads it first, since loading may start a download."""
        options = self.options
        with self.accelerator.main_process_first() if self.accelerator.num_processes > 1 else nullcontext():
            return datasets.load(
                options.data, options.data_dir, image_size=options.image_size,
                smallest=models.smallest_image(options.model), augment=options.augment, validation=options.validation,
                seed=options.seed, statistics=self.trained.statistics if self.trained else None,
                collate=options.collate,
            )  # fmt: skip

    def original(self) -> nn.Module:
        """The newly initialised network of the options."""
        options, data = self.options, self.data
        model = models.build(options.model, data.input_shape, data.num_classes, options.seed)
        pretrained.rescale_input(model, options.model, options.weights)
        return model

    def network(self, weights: str | None = None) -> nn.Module:
        """The network with structure and weights of a file, or with the weights that `--weights` names, if any.

        A file must fit exactly; of `--weights`, a classifier for other classes is left out (see `give_weights`).
        """
        model = self.original()
        if weights is None and self.options.weights is not None:
            with self.accelerator.main_process_first() if self.accelerator.num_processes > 1 else nullcontext():
                self.remarks += give_weights(model, self.options, self.data)
        elif weights is not None:
            if is_export(weights):
                load_plain(weights, model)
            else:
                restore(model, load_any(weights), weights)
        return model

    def batches(self, data: Any, size: int = EVALUATED) -> Batches:
        """Batches of a split for evaluation; all examples are evaluated in this process."""
        return Batches(as_dataset(data, "data"), size, self.accelerator.device, training=False,
                       channels_last=self.options.channels_last)  # fmt: skip

    def settle(self) -> None:
        """Choose the loss and the alignment of labels for the training data, see `Task`. Raises UsageError."""
        if not self.task.is_settled:
            batch = self.batches(self.data.train).samples(1)[0]
            settle(self.task, self.original().to(self.accelerator.device), batch, {"train": self.data.train})

    def measure(self, model: nn.Module, batches: Batches) -> tuple[str, float]:
        """The name and the value of the metric, or of the loss if the metric does not apply.

        Raises MakeweightError if the value is not finite.
        """
        self.settle()
        metrics = evaluate(model, batches, self.task, self.accelerator)
        name = self.task.metric_name if self.task.metric_name in metrics else "loss"
        if not abs(metrics[name]) < float("inf"):
            raise MakeweightError(f"the {name} is {metrics[name]}: expected a finite number")
        return name, metrics[name]

    @property
    def validation(self) -> Any:
        """The validation split. Raises UsageError if there is none."""
        if self.data.validation is None:
            raise UsageError(f"--validation {self.options.validation}: expected at least one example")
        return as_dataset(self.data.validation, "validation")


def drawn(data: Any, count: int | None, seed: int) -> Any:
    """A random subset of `count` examples, equal for equal seeds; by default all examples.

    Random, since the first examples of an image folder all have the same class.
    """
    import torch

    from ..seeding import generator, purpose

    if count is None or count >= len(data):
        return data
    return subset(data, torch.randperm(len(data), generator=generator(seed, purpose("drawn")))[:count])
