"""Loads exports: decodes tensors with the plugins that encoded them, and restores models."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from .discovery import load_class
from .errors import MakeweightError
from .files.artifact import Artifact, blamed_on, find_checksum, read, read_foreign
from .files.file_bytes import FileBytes
from .files.lazy_tensors import LazyTensors
from .files.safetensors_file import read_header
from .models.state import restore
from .models.structure import build, check_records, pending
from .models.weight_matching import fit_some
from .plugin_manager import Plugins


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


def load(path: str | Path, model: nn.Module, limit: int | None = None, strict: bool = True) -> nn.Module:
    """Restore an exported network into `model`, a network of the original structure with any weights. Returns `model`.

    `limit` is the maximum size of the decoded tensors in bytes; by default the larger of 1 GiB and 64 times the size of
    the file. Raises MakeweightError if the file is not an export, is damaged, exceeds `limit`, or belongs to another
    model. Raises UsageError if it needs a plugin that is not installed.

    With `strict=False`, tensors that the model lacks or has in another shape are left out, parameters that the file
    lacks keep their values, and a UserWarning lists both. What plugins recorded, such as the structure, must still fit.
    """
    artifact = load_plain(path, model, limit, strict)
    attach(artifact, model, path)
    return model


def load_plain(path: str | Path, model: nn.Module, limit: int | None = None, strict: bool = True) -> Artifact:
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
    if strict:
        restore(model, tensors, str(path))
    elif differences := fit_some(model, tensors, str(path)):
        warnings.warn(f"{path} was loaded in part: {differences}", stacklevel=3)
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
            raise MakeweightError(f"holds {left[0]!r}, unknown to model and plugins: it belongs to another model")


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
    artifact = read(path, limit)
    stored = {each.name: len(each.bytes) for each in read_header(file)[0]}
    decode(artifact, path, lazy=True)
    artifact.sizes = {name: size for name, size in stored.items() if name in artifact.tensors} | artifact.sizes
    return artifact


def load_any(path: str | Path, limit: int | None = None) -> dict[str, torch.Tensor]:
    """The decoded tensors of an export, or the tensors of any other safetensors file, by name."""
    return dict(open_any(path, limit).tensors)
