"""A mapping of tensors that are read or decoded on access, so that large files need little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch


class Source(Protocol):
    """A source that a tensor is read or decoded from."""

    def tensor(self) -> torch.Tensor:
        """Read or decode the tensor. Each call returns a new one."""
        ...


class LazyTensors(MutableMapping[str, torch.Tensor]):
    """Tensors by name. Each access to a tensor with a source reads or decodes it again; nothing is cached."""

    def __init__(self, sources: Mapping[str, Source | torch.Tensor]) -> None:
        self.sources = dict(sources)

    def __getitem__(self, name: str) -> torch.Tensor:
        source = self.sources[name]
        return source if isinstance(source, torch.Tensor) else source.tensor()

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        self.sources[name] = tensor

    def __delitem__(self, name: str) -> None:
        del self.sources[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    @staticmethod
    def within(tensors: Mapping[str, torch.Tensor], context: Callable[[], AbstractContextManager[None]]) -> LazyTensors:
        """The same tensors, each read inside a new `context()`, such as one that names the file in errors."""
        return LazyTensors({name: _Within(tensors, name, context) for name in tensors})


@dataclass(frozen=True)
class _Within:
    tensors: Mapping[str, torch.Tensor]
    name: str
    context: Callable[[], AbstractContextManager[None]]

    def tensor(self) -> torch.Tensor:
        with self.context():
            return self.tensors[self.name]
