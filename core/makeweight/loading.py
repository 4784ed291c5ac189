"""Loads exports: decodes tensors with the plugins that encoded them, and restores models."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .discovery import load_class
from .errors import MakeweightError
from .files.artifact import Artifact, blamed_on, find_checksum, read, read_foreign
from .files.file_bytes import FileBytes
from .files.lazy_tensors import LazyTensors
from .models.state import restore
from .models.structure import build, check_records, pending
from .plugins import Plugins


def decode(artifact: Artifact, path: str | Path, lazy: bool = False) -> Artifact:
    """Run `on_load` of the plugins in `artifact.metadata` in reverse order. Returns the same artifact, decoded.

    Afterwards all tensors are in memory. With `lazy`, each tensor is decoded on access instead. Raises MakeweightError
    for content that a plugin cannot decode, and UsageError if a plugin is not installed.
    """
    plugins = Plugins({name: load_class(name)() for name in artifact.metadata})
    with blamed_on(path):
        for name in reversed(plugins.by_name):  # pluggy has no reversed call
            plugins.call(name, "on_load", artifact=artifact)
        if lazy:
            artifact.tensors = LazyTensors.within(artifact.tensors, lambda: blamed_on(path))
        else:
            artifact.tensors = dict(artifact.tensors)
    return artifact


def load(path: str | Path, model: nn.Module, limit: int | None = None) -> nn.Module:
    """Restore an exported network into `model`, a network of the original structure with any weights. Returns `model`.

    `limit` is the maximum size of the decoded tensors in bytes; by default the larger of 1 GiB and 64 times the size of
    the file. Raises MakeweightError if the file is not an export, is damaged, exceeds `limit`, or belongs to another
    model. Raises UsageError if it needs a plugin that is not installed.
    """
    artifact = load_plain(path, model, limit)
    attach(artifact, model, path)
    return model


def load_plain(path: str | Path, model: nn.Module, limit: int | None = None) -> Artifact:
    """Load the structure and weights of an export into `model`, without `on_attach`. Training starts from this state.

    Returns the artifact. Its `tensors` are reduced to the tensors that belong to plugins.
    """
    artifact = decode(read(path, limit), path)
    with blamed_on(path):
        if records := pending(model, artifact.records):
            shapes = {name: tensor.shape for name, tensor in artifact.tensors.items()}
            check_records(model, artifact.records, shapes, tuple(f"{plugin}." for plugin in artifact.metadata))
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        for record in records:
            build(model, record)
        model.to(device)
    own = set(artifact.own(model.state_dict()))
    tensors = {name: tensor for name, tensor in artifact.tensors.items() if name not in own}
    restore(model, tensors, str(path))
    artifact.tensors = {name: artifact.tensors[name] for name in own}
    return artifact


def attach(artifact: Artifact, model: nn.Module, path: str | Path) -> None:
    """Run `on_attach` of the plugins on a loaded model. `artifact` is the result of `load_plain`.

    Raises MakeweightError if a tensor of the file belongs neither to the model nor to a plugin.
    """
    plugins = Plugins({name: load_class(name)() for name in artifact.metadata})
    with blamed_on(path):
        for name in plugins.by_name:
            plugins.call(name, "on_attach", artifact=artifact, model=model)
        if left := sorted(artifact.tensors):
            raise MakeweightError(f"holds {left[0]!r}, used by neither the model nor a plugin: it is of another model")


def load_tensors(path: str | Path, limit: int | None = None) -> dict[str, torch.Tensor]:
    """The decoded tensors of an export by name. `limit` is the maximum size in bytes, as in `load`.

    Raises MakeweightError if the file is not an export, is damaged or exceeds `limit`.
    """
    return dict(decode(read(path, limit), path).tensors)


def open_any(path: str | Path, limit: int | None = None) -> Artifact:
    """Open an export or any other safetensors file. Each tensor is decoded on access."""
    file = FileBytes(path)
    if find_checksum(file) is None:
        return Artifact(LazyTensors({each.name: each for each in read_foreign(file)}))
    return decode(read(path, limit), path, lazy=True)


def load_any(path: str | Path, limit: int | None = None) -> dict[str, torch.Tensor]:
    """The decoded tensors of an export, or the tensors of any other safetensors file, by name."""
    return dict(open_any(path, limit).tensors)
