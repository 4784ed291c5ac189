"""The export: tensors by name and what plugins recorded, in one safetensors file with a checksum over all of it.

The header's `__metadata__` has one entry, `makeweight`: the format's number, the checksum and the plugins' records,
`1 <16 hex digits> {"<plugin>": ["<version>", <record>], …}`. The checksum is XXH3-64 of the whole file with its own
digits as zeros.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .errors import MakeweightError
from .files import written_aside
from .plugins import Plugins, installed, load_class
from .state import restore

KEY = b'"makeweight":"1 '
ZEROS = b"0" * 16
HEADER_LIMIT = 100_000_000
"""bytes of header that safetensors itself accepts at most"""


@dataclass
class Artifact:
    """What an export holds while plugins turn it into what is written, and back.

    `metadata` maps a plugin to its JSON record: an entry means that reading the file needs the plugin. `sizes` maps a
    tensor to the bytes it takes in the file, where that is not the tensor's own size.
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


def write(artifact: Artifact, path: str | Path) -> int:
    """Write an artifact as one file, whole or not at all. Returns its size in bytes."""
    path = Path(path)
    found = installed()
    versions = {name: entry.dist.version for name, entry in found.items() if entry.dist}
    record = {name: [versions.get(name, "0"), each] for name, each in artifact.metadata.items()}
    text = f"1 {ZEROS.decode()} {json.dumps(record, separators=(',', ':'))}"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in artifact.tensors.items()}
    with written_aside(path) as aside:
        save_file(tensors, aside, metadata={"makeweight": text})
        where = _checksum_position(aside)
        if where is None:
            raise AssertionError("the header just written lacks its entry")
        digest = _checksum(aside, where)
        with aside.open("r+b") as file:
            file.seek(where)
            file.write(digest)
    return path.stat().st_size


def read(path: str | Path) -> Artifact:
    """Read a file that `write` wrote, its tensors still as plugins left them.

    Raises MakeweightError, with the file's name and what is wrong, for one that is not ours or not whole.
    """
    path = Path(path)
    where = _checksum_position(path)
    if where is None:
        raise MakeweightError(f"{path} is not a makeweight export: its header has no entry 'makeweight'")
    with path.open("rb") as file:
        file.seek(where)
        stored = file.read(16)
    if stored != _checksum(path, where):
        raise MakeweightError(f"{path} is damaged: its checksum does not match its bytes")
    try:
        text = _header(path)["__metadata__"]["makeweight"]
        record = json.loads(text[18:])
        metadata = {str(name): each for name, (_, each) in record.items()}
        tensors = load_file(path)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MakeweightError(f"{path} is damaged: {_first_line(error)}") from error
    for name, (version, _) in record.items():
        if name not in installed():
            raise MakeweightError(f"{path} needs plugin {name!r} ({version}), which is not installed")
    return Artifact(tensors, metadata)


def decode(artifact: Artifact, model: nn.Module | None, path: str | Path) -> Artifact:
    """Let the plugins that an artifact names undo what they did, last first; without a model only on the tensors."""
    plugins = Plugins({name: load_class(name)() for name in artifact.metadata})
    try:
        for name in reversed(plugins.by_name):  # pluggy has no reversed call
            plugins.call(name, "on_load", artifact=artifact, model=model)
    except MakeweightError as error:
        raise MakeweightError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise MakeweightError(f"{path} is not as its plugins wrote it: {type(error).__name__}: {error}") from error
    return artifact


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """Restore an exported model: `model` as it was before training, with any weights. Returns it.

    Raises MakeweightError for a file that is not ours, not whole, or of another model.
    """
    restore(model, decode(read(path), model, path).tensors, str(path))
    return model


def load_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The decoded tensors of an export by name. Raises MakeweightError for a file that is not ours or not whole."""
    return decode(read(path), None, path).tensors


def is_export(path: str | Path) -> bool:
    """Whether a safetensors file is one of ours; raises MakeweightError when it is no safetensors file at all."""
    return _checksum_position(Path(path)) is not None


def load_any(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of an export, decoded, or of any other safetensors file."""
    if is_export(path):
        return load_tensors(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise MakeweightError(f"{path} is damaged: {_first_line(error)}") from error


def _header_bytes(path: Path) -> bytes:
    """The header of a safetensors file, its length checked against the file before it is read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > HEADER_LIMIT or file.read(1) != b"{":
                raise MakeweightError(f"{path} is not a safetensors file")
            if 8 + length > size:
                raise MakeweightError(f"{path} is cut short: its header has {length} bytes, the file {size}")
            file.seek(8)
            return file.read(length)
    except OSError as error:
        raise MakeweightError(f"{path} cannot be read: {error.strerror}") from error


def _header(path: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(_header_bytes(path))
    return header


def _checksum_position(path: Path) -> int | None:
    """Where in the file the checksum's digits stand, None in a file that is not ours."""
    header = _header_bytes(path)
    found = header.find(KEY)
    return None if found < 0 or found + len(KEY) + 16 > len(header) else 8 + found + len(KEY)


def _checksum(path: Path, where: int) -> bytes:
    """XXH3-64 of the file with the 16 bytes at `where` as zeros, in hex digits."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        for chunk in _blanked(file, where):
            digest.update(chunk)
    return digest.hexdigest().encode()


def _blanked(file: Any, where: int) -> Iterator[bytes]:
    yield file.read(where)
    file.seek(16, os.SEEK_CUR)
    yield ZEROS
    while chunk := file.read(1 << 20):
        yield chunk


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
