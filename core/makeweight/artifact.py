"""The export: tensors by name and what plugins recorded, in one safetensors file with a checksum over all of it.

The header's `__metadata__` has one entry, `makeweight`: the format's number, the checksum and the plugins' records,
`1 <16 hex digits> {"<plugin>": ["<version>", <record>], …}`. The checksum is XXH3-64 of the whole file with its own
digits as zeros.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from .errors import MakeweightError
from .files import written_aside
from .lazy import LazyTensors
from .plugins import Plugins, installed, load_class
from .state import restore
from .stored import FileBytes, bytes_of, header_bytes, layout_of, read_header, write_in_pieces

KEY = b'"makeweight":"1 '
ZEROS = b"0" * 16
CHUNK = 1 << 20


@dataclass
class Artifact:
    """What an export holds while plugins turn it into what is written, and back.

    `metadata` maps a plugin to its JSON record: an entry means that reading the file needs the plugin. `sizes` maps a
    tensor to the bytes it takes in the file, where that is not the tensor's own size. Tensors that come from a file
    may be `LazyTensors`, read or decoded when they are asked for.
    """

    tensors: MutableMapping[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


def write(artifact: Artifact, path: str | Path) -> int:
    """Write an artifact as one file, whole or not at all. Returns its size in bytes."""
    path = Path(path)
    names = sorted(artifact.tensors, key=lambda name: (-artifact.tensors[name].dtype.itemsize, name))
    layouts = [layout_of(name, artifact.tensors[name]) for name in names]  # the widest first: all are aligned
    with written_aside(path) as aside:
        pieces = (bytes_of(artifact.tensors[name]) for name in names)
        write_in_pieces(aside, layouts, {"makeweight": _record(artifact.metadata)}, pieces)
        seal(aside)
    return path.stat().st_size


def write_bytes(path: str | Path, metadata: dict[str, Any], name: str, size: int, pieces: Iterable[Any]) -> int:
    """The same for an artifact of one tensor of `size` bytes, which come in pieces; `pack` needs no memory for them."""
    path = Path(path)
    with written_aside(path) as aside:
        write_in_pieces(aside, [(name, "U8", (size,), size)], {"makeweight": _record(metadata)}, pieces)
        seal(aside)
    return path.stat().st_size


def read(path: str | Path) -> Artifact:
    """Read a file that `write` wrote: its tensors, each read when it is asked for, still as plugins left them.

    Raises MakeweightError, with the file's name and what is wrong, for one that is not ours or not whole.
    """
    file = FileBytes(path)
    where = _checksum_position(file)
    if where is None:
        raise MakeweightError(f"{path} is not a makeweight export: its header has no entry 'makeweight'")
    if file[where : where + 16] != _checksum(file, where):
        raise MakeweightError(f"{path} is damaged: its checksum does not match its bytes")
    stored, metadata = read_header(file)
    try:
        record = {
            str(name): (str(version), each) for name, (version, each) in json.loads(metadata["makeweight"][18:]).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MakeweightError(f"{path} is damaged: its record of plugins is not as it was written") from error
    for name, (version, _) in record.items():
        if name not in installed():
            raise MakeweightError(f"{path} needs plugin {name!r} ({version}), which is not installed")
    return Artifact(
        LazyTensors({each.name: each for each in stored}), {name: each for name, (_, each) in record.items()}
    )


def decode(artifact: Artifact, model: nn.Module | None, path: str | Path, lazy: bool = False) -> Artifact:
    """Let the plugins that an artifact names undo what they did, last first; without a model only on the tensors.

    All tensors are in memory afterwards, unless `lazy`: then each is decoded when it is asked for.
    """
    plugins = Plugins({name: load_class(name)() for name in artifact.metadata})
    with blamed_on(path):
        for name in reversed(plugins.by_name):  # pluggy has no reversed call
            plugins.call(name, "on_load", artifact=artifact, model=model)
        if lazy:
            artifact.tensors = LazyTensors.within(artifact.tensors, lambda: blamed_on(path))
        else:
            artifact.tensors = dict(artifact.tensors)
    return artifact


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """Restore an exported model: `model` as it was before training, with any weights. Returns it.

    Raises MakeweightError for a file that is not ours, not whole, or of another model.
    """
    restore(model, decode(read(path), model, path).tensors, str(path))
    return model


def load_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The decoded tensors of an export by name. Raises MakeweightError for a file that is not ours or not whole."""
    return dict(decode(read(path), None, path).tensors)


def is_export(path: str | Path) -> bool:
    """Whether a safetensors file is one of ours; raises MakeweightError when it is no safetensors file at all."""
    return _checksum_position(FileBytes(path)) is not None


def open_any(path: str | Path) -> Artifact:
    """An export, or any other safetensors file: its tensors are decoded one by one, when they are asked for."""
    if is_export(path):
        return decode(read(path), None, path, lazy=True)
    return Artifact(LazyTensors({each.name: each for each in read_header(FileBytes(path))[0]}))


def load_any(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of an export, decoded, or of any other safetensors file."""
    return dict(open_any(path).tensors)


def seal(path: Path) -> None:
    """Put into a file that was just written the checksum that its bytes have."""
    file = FileBytes(path)
    where = _checksum_position(file)
    if where is None:
        raise AssertionError("the header just written lacks its entry")
    with path.open("r+b") as opened:
        opened.seek(where)
        opened.write(_checksum(file, where))


def _record(metadata: dict[str, Any]) -> str:
    """The entry of the header, the checksum's digits still zeros."""
    versions = {name: entry.dist.version for name, entry in installed().items() if entry.dist}
    record = {name: [versions.get(name, "0"), each] for name, each in metadata.items()}
    return f"1 {ZEROS.decode()} {json.dumps(record, separators=(',', ':'))}"


def _checksum_position(file: FileBytes) -> int | None:
    """Where in the file the checksum's digits stand, None in a file that is not ours."""
    header = header_bytes(file)
    found = header.find(KEY)
    return None if found < 0 or found + len(KEY) + 16 > len(header) else 8 + found + len(KEY)


def _checksum(file: FileBytes, where: int) -> bytes:
    """XXH3-64 of the file with the 16 bytes at `where` as zeros, in hex digits."""
    digest = xxhash.xxh3_64(file[:where])
    digest.update(ZEROS)
    for begin in range(where + 16, len(file), CHUNK):
        digest.update(file[begin : begin + CHUNK])
    return digest.hexdigest().encode()


@contextmanager
def blamed_on(path: str | Path) -> Iterator[None]:
    """What plugins raise while they decode is the file's fault: an error that names it."""
    try:
        yield
    except MakeweightError as error:
        raise MakeweightError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise MakeweightError(f"{path} is not as its plugins wrote it: {type(error).__name__}: {error}") from error
