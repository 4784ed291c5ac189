"""Data sets in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .augmentation import Augment


class Tensors:
    """A data set in memory: tensors of equal length, as a tuple (x, y) or as a mapping by name.

    `augment` is applied to the images (the first tensor of the tuple) of each training batch. Raises UsageError for
    tensors of different lengths.
    """

    def __init__(self, columns: tuple[Tensor, ...] | dict[str, Tensor], augment: Augment | None = None,
                 batch_size: int | None = None) -> None:  # fmt: skip
        lengths = {len(column) for column in (columns.values() if isinstance(columns, dict) else columns)}
        if len(lengths) != 1:
            raise UsageError(f"tensors of a data set have lengths {sorted(lengths)}: expected one length")
        self.columns, self.augment, self.length = columns, augment, lengths.pop()
        self.batch_size = batch_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self._each(lambda column: column[index])

    def _each(self, function: Any) -> Any:
        if isinstance(self.columns, dict):
            return {name: function(column) for name, column in self.columns.items()}
        return tuple(function(column) for column in self.columns)

    def take(self, indices: Tensor) -> Any:
        """The batch of the examples at `indices`, int64 [B]."""
        if isinstance(self.columns, dict):
            return {name: column.index_select(0, indices) for name, column in self.columns.items()}
        return [column.index_select(0, indices) for column in self.columns]

    def to(self, device: torch.device) -> Tensors:
        return Tensors(self._each(lambda column: column.to(device)), self.augment, self.batch_size)

    def subset(self, indices: Tensor) -> Tensors:
        return Tensors(self._each(lambda column: column[indices]), self.augment, self.batch_size)
