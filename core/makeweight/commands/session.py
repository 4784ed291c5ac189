"""What the commands set up before they train or measure: the task, the accelerator, the data and the network."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from ..data import by_name as datasets
from ..data.batches import Batches, as_dataset, subset
from ..errors import MakeweightError, UsageError
from ..files.artifact import is_export
from ..loading import load_any, load_plain
from ..models import by_name as models
from ..models.state import restore
from ..options import Options
from ..task import Task
from ..training.accelerators import new_accelerator
from ..training.evaluation import evaluate
from .arguments import parse

EVALUATED = 500
"""examples evaluated in a batch"""


class Session:
    """The task, the accelerator, the data and the network that options name; `out` is for the tracker.

    Raises UsageError for what options name and what is not there.
    """

    def __init__(self, options: Options, out: Path | None = None) -> None:
        models.check(options.model)
        datasets.check(options.data)
        self.options = options
        self.plugins: dict[str, Any] = {}  # by name, where a verb looks at a run with plugins
        self.task = Task.named(options.criterion, options.forward, options.metric)
        self.accelerator = new_accelerator(options.precision, options.tracker if out else None, out)
        self.data = self._load_data()

    @classmethod
    def of_file(cls, arguments: argparse.Namespace) -> Session:
        """What a verb needs to measure `arguments.file`: the options of the run it lies in, then those of the words.

        The config.yaml beside the file may be downloaded: it is imported from only if it is trusted.
        """
        named = ["--recipe", arguments.recipe] if arguments.recipe else []
        configuration = parse([*named, *arguments.options], beside=arguments.file.parent / "config.yaml")
        session = cls(configuration.options)
        session.plugins = configuration.plugins
        return session

    def _load_data(self) -> datasets.Data:
        """The data; the first process comes first, in case that it is downloaded."""
        options = self.options
        with self.accelerator.main_process_first() if self.accelerator.num_processes > 1 else nullcontext():
            return datasets.load(
                options.data, options.data_dir, image_size=options.image_size,
                smallest=models.smallest_image(options.model), augment=options.augment, validation=options.validation,
                seed=options.seed,
            )  # fmt: skip

    def original(self) -> nn.Module:
        """The network that the options name, as it is initialised."""
        return models.build(self.options.model, self.data.input_shape, self.data.num_classes, self.options.seed)

    def network(self, weights: str | None = None) -> nn.Module:
        """The network with its structure and weights from a file, by default those of `--weights`."""
        model, weights = self.original(), weights or self.options.weights
        if weights is not None:
            if not Path(weights).is_file():
                raise UsageError(f"--weights {weights}: expected a safetensors file, there is none")
            if is_export(weights):
                load_plain(weights, model)
            else:
                restore(model, load_any(weights), weights)
        return model

    def batches(self, data: Any, size: int = EVALUATED) -> Batches:
        """A split of the data for evaluation: each example once, all of them in this process."""
        return Batches(as_dataset(data, "data"), size, self.accelerator.device, training=False,
                       channels_last=self.options.channels_last)  # fmt: skip

    def measure(self, model: nn.Module, batches: Batches) -> tuple[str, float]:
        """The metric's name and its value. Raises MakeweightError for one that is not finite."""
        metrics = evaluate(model, batches, self.task, self.accelerator)
        name = self.task.metric_name if self.task.metric_name in metrics else "loss"
        if not abs(metrics[name]) < float("inf"):
            raise MakeweightError(f"the {name} is {metrics[name]}: expected a finite number")
        return name, metrics[name]

    @property
    def validation(self) -> Any:
        """The validation split. Raises UsageError where there is none."""
        if self.data.validation is None:
            raise UsageError(f"--validation {self.options.validation}: expected more than none")
        return as_dataset(self.data.validation, "validation")


def drawn(data: Any, count: int | None, seed: int) -> Any:
    """`count` examples of a split drawn at random, always the same ones: a folder's come by class. All by default."""
    import torch

    from ..seeding import generator, purpose

    if count is None or count >= len(data):
        return data
    return subset(data, torch.randperm(len(data), generator=generator(seed, purpose("drawn")))[:count])
