"""Data sets with a collate function; conversion of DataLoaders to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data import default_collate as torch_collate

from ..errors import UsageError

Collate = Callable[[list[Any]], Any]
"""from a list of examples to a batch"""


class Collated(Dataset[Any]):
    """A data set with its collate function, which makes a batch of a list of examples."""

    def __init__(self, data: Any, collate: Collate) -> None:
        self.data, self.collate = data, collate
        self.batch_size: int | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]

    @property
    def targets(self) -> Any:
        return getattr(self.data, "targets", None)

    @property
    def classes(self) -> Any:
        return getattr(self.data, "classes", None)

    def plain(self) -> Collated:
        """The same without augmentation, if the data set tells how."""
        return Collated(self.data.plain(), self.collate) if hasattr(self.data, "plain") else self


def taken_apart(loader: DataLoader[Any], what: str) -> tuple[Any, Collate | None, int]:
    """The data set of a DataLoader, its collate function (None for torch's own), and its batch size.

    Shuffling is the trainer's: raises UsageError for a sampler other than torch's sequential and random ones, and for a
    data set without a length.
    """
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise UsageError(f"{what} is a DataLoader of an iterable data set: expected a data set with a length and items")
    sampler: Any = loader.sampler
    plain = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(loader.dataset)
    )
    if not plain or type(loader.batch_sampler) is not BatchSampler or loader.batch_size is None:
        given = type(sampler if not plain else loader.batch_sampler).__name__
        raise UsageError(f"{what} is a DataLoader with a {given}: expected torch's own order; the trainer shuffles")
    collate = None if loader.collate_fn is torch_collate else loader.collate_fn
    return loader.dataset, collate, loader.batch_size


def default_collate(examples: Sequence[Any]) -> Any:
    """The collate function of torch. Raises UsageError for examples that it cannot put into a batch."""
    try:
        return torch_collate(list(examples))
    except (RuntimeError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"examples of the data cannot be put into a batch ({reason}): give --collate package.module:function"
        ) from error


def first_tensor(data: Any, example: Any) -> Tensor | None:
    """The first tensor of a collated batch of one example; None for data sets without a collate function."""
    if not isinstance(data, Collated):
        return None
    rest = [data.collate([example])]
    while rest:
        value = rest.pop(0)
        if isinstance(value, Tensor):
            return value[0]
        if isinstance(value, dict):
            rest += value.values()
        elif isinstance(value, list | tuple):
            rest += value
    return None
