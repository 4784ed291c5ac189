"""Packing and unpacking of files. At most one tensor is in memory; of a coded tensor only a few blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from makeweight import Artifact, MakeweightError
from makeweight.plugin import (
    FileBytes,
    Layout,
    blamed_on,
    bytes_of,
    decode,
    is_export,
    layout_of,
    read,
    read_header,
    spool_beside,
    write_bytes,
    write_in_pieces,
    written_aside,
)

from .codec.bits import Source
from .codec.tensor import LAYOUTS, Located, decoded_elements
from .codec.writer import BlobWriter
from .progress import bar
from .tensors import BLOB, located_in

Part = tuple[Layout, Iterator[NDArray[np.uint8]]]  # layout of a tensor, and its bytes in pieces


def pack(source: Path, target: Path, threads: int = 1) -> None:
    """Compress the tensors of any safetensors file; its metadata is kept.

    Raises MakeweightError if the file is damaged or already packed, or if the target cannot be written.
    """
    tensors, described = read_header(FileBytes(source))
    artifact = Artifact({})
    if is_export(source):
        artifact = read(source)
        if "huffman" in artifact.metadata:
            raise MakeweightError(f"{source} is already packed")
        artifact.metadata["huffman"] = {}
    else:
        artifact.metadata["huffman"] = {"metadata": described} if described else {}
    with spool_beside(target) as spool, bar("packing", sum(len(each.bytes) for each in tensors)) as advance:
        writer = BlobWriter(spool, threads)
        for each in tensors:
            with blamed_on(source):
                writer.add(each.name, each.dtype, each.shape, np.frombuffer(each.bytes.read(), np.uint8))
            advance(len(each.bytes))
        write_bytes(target, artifact, BLOB, writer.size, writer.pieces())


def unpack(source: Path, target: Path, threads: int = 1, limit: int | None = None) -> None:
    """Write the tensors of an export to an ordinary safetensors file, with the metadata from before `pack`.

    `limit`: largest total size of the tensors in bytes; default the larger of 1 GiB and 64 times the file's size.
    Raises MakeweightError if the file is not an export, is damaged, or exceeds the limit, or if the target cannot be
    written.
    """
    artifact = read(source, limit)
    metadata = _metadata_before(artifact, source)
    if list(artifact.metadata) == ["huffman"]:
        with blamed_on(source):
            blob, located = located_in(artifact.tensors, artifact.limit)
        parts = [_decoded(each, blob, threads) for each in located]
    else:  # other plugins decode too, and they need whole tensors
        parts = [
            (layout_of(name, tensor), iter([bytes_of(tensor)]))
            for name, tensor in decode(artifact, source).tensors.items()
        ]
    parts = _aligned(parts)
    layouts = [layout for layout, _ in parts]
    with written_aside(target) as aside, bar("unpacking", sum(layout[3] for layout in layouts)) as advance:
        write_in_pieces(aside, layouts, metadata, _advancing(source, parts, advance))


def _decoded(located: Located, blob: Source, threads: int) -> Part:
    tensor = located.tensor
    layout = tensor.name, tensor.dtype, tensor.shape, tensor.num_bytes
    return layout, decoded_elements(located, blob, threads)


def _aligned(parts: list[Part]) -> list[Part]:
    """The tensors in their order, or sorted by element size if the order would misalign a tensor's elements."""
    at = 0
    for (_, dtype, _, size), _ in parts:
        if 8 * at % LAYOUTS[dtype].word:
            return sorted(parts, key=lambda part: -LAYOUTS[part[0][1]].word)
        at += size
    return parts


def _advancing(source: Path, parts: list[Part], advance: Callable[[int], None]) -> Iterator[NDArray[np.uint8]]:
    with blamed_on(source):
        for _, pieces in parts:
            for piece in pieces:
                yield piece
                advance(piece.nbytes)


def _metadata_before(artifact: Artifact, source: Path) -> dict[str, str]:
    record = artifact.metadata.get("huffman", {})
    metadata = record.get("metadata", {}) if isinstance(record, dict) else {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MakeweightError(f"{source}: its metadata record is damaged: expected a table of text")
    return metadata
