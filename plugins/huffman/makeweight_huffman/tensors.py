"""Conversion between torch tensors and the codec's bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from makeweight import MakeweightError
from makeweight.plugin import DTYPES, LazyTensors, Stored, bytes_of, check_names, layout_of

from .codec.bits import Source, read_varint
from .codec.container import source_of
from .codec.entries import locate_all
from .codec.tensor import Located, decode_elements
from .codec.writer import BlobWriter

BLOB = "huffman"
"""name of the only tensor in a coded file"""


def encode_tensors(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Encode all tensors as one blob, uint8 [bytes]. Raises MakeweightError for a dtype that safetensors lacks."""
    writer = BlobWriter()
    for name, tensor in tensors.items():
        _, dtype, shape, _ = layout_of(name, tensor)
        writer.add(name, dtype, shape, bytes_of(tensor))
    return torch.from_numpy(writer.to_array())


def decode_tensors(blob: Source, located: Sequence[Located]) -> LazyTensors:
    """Inverse of `encode_tensors`, bit for bit. Each tensor is decoded on access.

    Access raises FormatError if the blob is damaged.
    """
    return LazyTensors({each.tensor.name: Coded(each, blob) for each in located})


@dataclass(frozen=True)
class Coded:
    """One coded tensor of a blob."""

    located: Located
    blob: Source

    def tensor(self) -> torch.Tensor:
        """Decode the tensor. Raises FormatError for a damaged blob, MakeweightError for a dtype that torch lacks."""
        entry = self.located.tensor
        if entry.dtype not in DTYPES:
            raise MakeweightError(f"huffman: {entry.name!r} has dtype {entry.dtype}, which torch does not support")
        data = np.empty(entry.num_bytes, np.uint8)
        decode_elements(self.located, self.blob, data)
        dtype = DTYPES[entry.dtype]
        flat = torch.from_numpy(data).view(dtype) if data.size else torch.empty(0, dtype=dtype)
        return flat.reshape(entry.shape)


def coded_sizes(located: Sequence[Located]) -> dict[str, int]:
    """Coded size of each tensor in bytes, without its name and shape."""
    return {each.tensor.name: each.end - each.begin for each in located}


def located_in(tensors: Mapping[str, torch.Tensor], limit: int | None = None) -> tuple[Source, list[Located]]:
    """The blob of a coded file (read on access if it lies in a file), and the location of each tensor in it.

    `limit`: largest total size of the decoded tensors, in bytes. Raises MakeweightError unless the file holds one
    tensor, the blob, which is a vector of bytes with valid entries within the limit.
    """
    source = tensors.sources.get(BLOB) if isinstance(tensors, LazyTensors) else tensors.get(BLOB)
    blob: Source | None = None
    if isinstance(source, Stored) and source.dtype == "U8" and len(source.shape) == 1:
        blob = source.bytes
    if isinstance(source, torch.Tensor) and source.dtype == torch.uint8 and source.ndim == 1:
        blob = source_of(source.numpy())
    if blob is None or len(tensors) != 1:
        raise MakeweightError("huffman: expected a file with one tensor 'huffman' of bytes")
    if len(blob) > 1:
        check_names(read_varint(blob, 1)[0])
    located = locate_all(blob)
    check_names(len(located), (each.tensor.name for each in located))
    decoded = sum(each.tensor.num_bytes for each in located)
    if limit is not None and decoded > limit:
        raise MakeweightError(
            f"huffman: its tensors take {decoded:,} bytes decoded, expected at most {limit:,}: "
            f"allow them with --max-bytes {decoded} (inspect, evaluate, unpack) or limit={decoded} (makeweight.load)"
        )
    return blob, located
