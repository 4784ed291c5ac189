"""Batches of a data set: by tensor indexing if the data set is in memory, otherwise with a DataLoader."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sized
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from ..errors import UsageError
from ..seeding import generator, mix, purpose, sample_noise
from .loaders import Collated, default_collate, first_tensor, taken_apart
from .tensors import Tensors

ORDER, SAMPLE = purpose("order"), purpose("sample")


def as_dataset(data: Any, what: str) -> Tensors | Dataset[Any]:
    """Convert tensors (x, y), a mapping of tensors or a TensorDataset to `Tensors`; other data sets are returned as is.

    For a DataLoader, its data set, collate function and batch size are used. `what` is the name of the data in
    messages. Raises UsageError for objects without a length and items.
    """
    if isinstance(data, Tensors):
        return data
    if isinstance(data, DataLoader):
        data, collate, batch_size = taken_apart(data, what)
        found = as_dataset(data, what) if collate is None else data
        if not isinstance(found, Tensors):
            found = Collated(found, collate or default_collate)
        found.batch_size = batch_size
        return found
    if isinstance(data, TensorDataset):
        return Tensors(data.tensors)
    if isinstance(data, (tuple, list)) and data and all(isinstance(column, Tensor | np.ndarray) for column in data):
        if len(data) != 2:
            raise UsageError(f"{what} has {len(data)} tensors: expected (x, y), or a mapping of tensors by name")
        return Tensors(tuple(torch.as_tensor(column) for column in data))
    if isinstance(data, Mapping) and data and all(isinstance(column, Tensor) for column in data.values()):
        return Tensors(dict(data))
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Tensor | Mapping | str):
        data_set: Dataset[Any] = data
        return data_set
    raise UsageError(f"{what} is a {type(data).__name__}: expected tensors, or a data set with a length and items")


def find_first_tensor(example: Any) -> Tensor:
    """The first tensor of an example (x, y) or of a mapping."""
    first = next(iter(example.values())) if isinstance(example, Mapping) else example[0]
    return first[0] if isinstance(first, (tuple, list)) else torch.as_tensor(first)


def with_channels_last(batch: Any) -> Any:
    """The batch with its images [B, C, H, W] in the channels-last memory format. Other values are not changed."""
    if isinstance(batch, Mapping):
        return {name: with_channels_last(value) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [with_channels_last(value) for value in batch]
    if not (isinstance(batch, Tensor) and batch.ndim == 4):
        return batch
    _, channels, height, width = batch.shape
    laid = batch.contiguous(memory_format=torch.channels_last)
    # With one channel both formats have the same memory; only explicit strides mark the tensor as channels-last.
    return laid.as_strided(laid.shape, (channels * height * width, 1, channels * width, channels))


class _Seeded(Dataset[Any]):
    """A data set that seeds all random generators with (seed, epoch, index) before it reads an item, in any process."""

    def __init__(self, data: Any, seed: int) -> None:
        self.data, self.seed = data, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        seed = mix(self.seed, SAMPLE, epoch, index)
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        return self.data[index]


class Batches:
    """This process's part of the batches of a data set, for training or evaluation.

    A training batch is split evenly over processes and micro-batches; an incomplete last batch is dropped. In
    evaluation, every example occurs exactly once over all processes. The order depends only on the seed and the epoch.
    Raises UsageError if the batch size does not fit the data or the number of processes.
    """

    def __init__(self, data: Any, batch_size: int, device: torch.device, *, training: bool, accumulate: int = 1,
                 seed: int = 0, rank: int = 0, processes: int = 1, workers: int = 0,
                 channels_last: bool = False) -> None:  # fmt: skip
        self.examples = len(cast(Sized, data))
        parts = processes * accumulate
        if training and batch_size % parts:
            raise UsageError(
                f"batch_size {batch_size}: expected a multiple of {parts} ({processes} processes x {accumulate} "
                "micro-batches)"
            )
        if training and self.examples < batch_size:
            raise UsageError(f"batch_size {batch_size}: expected at most the {self.examples} training examples")
        if training and isinstance(data, Tensors | Collated) and data.batch_size not in (None, batch_size):
            raise UsageError(f"batch_size {batch_size}: expected {data.batch_size}, as in the DataLoader")
        self.data = data.to(device) if isinstance(data, Tensors) else data
        self.device, self.training, self.seed = device, training, seed
        self.rank, self.processes, self.workers = rank, processes, workers
        self.batch_size, self.accumulate, self.channels_last = batch_size, accumulate, channels_last
        self.local = batch_size // parts if training else batch_size
        self.steps = self.examples // batch_size

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Any]]:
        """The micro-batches of each optimizer step of `epoch` (counted over the run), beginning with step `start`."""
        order = torch.randperm(self.examples, generator=generator(self.seed, ORDER, epoch))
        if isinstance(self.data, Tensors):
            order = order.to(self.device)
        here = order[: self.steps * self.batch_size].view(self.steps, self.processes, self.accumulate, self.local)
        parts = here[start:, self.rank].flatten(0, 1)  # [steps * accumulate, local]
        batches = self._fetch(parts, epoch)
        for _ in range(self.steps - start):
            yield [next(batches) for _ in range(self.accumulate)]

    def in_order(self) -> Iterator[Any]:
        """The batches of this process for evaluation, in order."""
        yield from (batch for batch, _ in self.counted())

    def counted(self) -> Iterator[tuple[Any, int]]:
        """The batches of this process for evaluation, in order, each with its number of examples."""
        mine = torch.arange(self.rank, self.examples, self.processes)
        if isinstance(self.data, Tensors):
            mine = mine.to(self.device)
        parts = mine.split(self.local) if len(mine) > 0 else ()
        for batch, part in zip(self._fetch(parts, 0), parts, strict=True):
            yield batch, len(part)

    @property
    def rounds(self) -> int:
        """The number of evaluation batches of the first process, which has the most."""
        return -(-self.examples // (self.processes * self.local))

    def first_tensor(self) -> Tensor:
        """The first tensor of the first example."""
        example = self.data[0]
        found = first_tensor(self.data, example)
        return find_first_tensor(example) if found is None else found

    def samples(self, count: int, balanced: bool = False) -> list[Any]:
        """`count` micro-batches of the first examples, without augmentation and equal in every process.

        With `balanced`, the examples cycle through the classes. Raises UsageError if the data has no class labels.
        """
        most = min(count * self.local, self.examples)
        indices = self._in_turn(most) if balanced else torch.arange(most)
        if isinstance(self.data, Tensors):
            batches = [self.data.take(part) for part in indices.to(self.device).split(self.local)]
        else:
            plain = self.data.plain() if hasattr(self.data, "plain") else self.data
            batches = list(self._load(indices.split(self.local), 0, plain))
        return [with_channels_last(batch) for batch in batches] if self.channels_last else batches

    def _in_turn(self, count: int) -> Tensor:
        """Indices of the first example of each class, then of the second of each class, and so on: [<= count]."""
        labels = self._labels()
        ranks = torch.zeros_like(labels)
        for label in labels.unique():
            of_class = labels == label
            ranks[of_class] = torch.arange(int(of_class.sum()))
        return (ranks * (int(labels.max()) + 1) + labels).argsort(stable=True)[:count]

    def _labels(self) -> Tensor:
        """The class label of every example, int64 [N]. Raises UsageError."""
        if isinstance(self.data, Tensors):
            columns = self.data.columns
            labels: Any = columns.get("labels") if isinstance(columns, dict) else columns[-1]
        else:
            labels = getattr(self.data, "targets", None)
            if labels is None:
                labels = [self.data[index][1] for index in range(self.examples)]
        found = None if labels is None else torch.as_tensor(labels).cpu()
        if found is None or found.ndim != 1 or found.is_floating_point():
            raise UsageError("balanced samples: expected one class for each example")
        return found.long()

    def _fetch(self, parts: Any, epoch: int) -> Iterator[Any]:
        batches = self._take(parts, epoch) if isinstance(self.data, Tensors) else self._load(parts, epoch)
        return map(with_channels_last, batches) if self.channels_last else batches

    def _load(self, parts: Any, epoch: int, data: Any = None) -> Iterator[Any]:
        keys = [[(epoch, index) for index in part.tolist()] for part in parts]
        loader: DataLoader[Any] = DataLoader(
            _Seeded(self.data if data is None else data, self.seed),
            batch_sampler=keys,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=generator(self.seed, epoch),
            collate_fn=self.data.collate if isinstance(self.data, Collated) else default_collate,
        )
        for batch in loader:
            yield send_to_device(batch, self.device, non_blocking=True)

    def _take(self, parts: Any, epoch: int) -> Iterator[Any]:
        augment = self.data.augment if self.training else None
        for indices in parts:
            batch = self.data.take(indices)
            if augment is not None:
                batch[0] = augment(batch[0], sample_noise(indices, 3, self.seed, SAMPLE, epoch))
            yield batch


def subset(data: Any, indices: Tensor) -> Any:
    """The examples of a data set at `indices`, int64 [n]."""
    if isinstance(data, Tensors):
        return data.subset(indices)
    if isinstance(data, Collated):
        part = Collated(subset(data.data, indices), data.collate)
        part.batch_size = data.batch_size
        return part
    return data.select(indices.tolist()) if hasattr(data, "select") else Subset(data, indices.tolist())
