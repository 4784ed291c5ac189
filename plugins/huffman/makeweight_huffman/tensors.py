"""Between torch's tensors and the codec's bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from makeweight import MakeweightError
from makeweight.lazy import LazyTensors
from makeweight.stored import DTYPES, Stored, bytes_of, layout_of

from .codec.bits import Source
from .codec.container import source_of
from .codec.entries import Located, locate_all
from .codec.tensor import decode_elements
from .codec.writer import BlobWriter

BLOB = "huffman"
"""the name of the one tensor in a coded file"""


def encode_tensors(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All tensors in one blob, uint8 [bytes]. Raises MakeweightError for a dtype that safetensors has not."""
    writer = BlobWriter()
    for name, tensor in tensors.items():
        _, dtype, shape, _ = layout_of(name, tensor)
        writer.add(name, dtype, shape, bytes_of(tensor))
    return torch.from_numpy(writer.to_array())


def decode_tensors(blob: Source, located: Sequence[Located]) -> LazyTensors:
    """What `encode_tensors` was given, bit for bit; each tensor is decoded when it is asked for.

    Raises FormatError then for a blob that is not as it was written.
    """
    return LazyTensors({each.tensor.name: Coded(each, blob) for each in located})


@dataclass(frozen=True)
class Coded:
    """A tensor in a blob."""

    located: Located
    blob: Source

    def tensor(self) -> torch.Tensor:
        """The tensor, decoded."""
        what = self.located.tensor
        if what.dtype not in DTYPES:
            raise MakeweightError(f"huffman: {what.name!r} is of dtype {what.dtype}, which torch has not")
        data = np.empty(what.num_bytes, np.uint8)
        decode_elements(what, self.blob, self.located.begin, self.located.end, data)
        dtype = DTYPES[what.dtype]
        flat = torch.from_numpy(data).view(dtype) if data.size else torch.empty(0, dtype=dtype)
        return flat.reshape(what.shape)


def coded_sizes(located: Sequence[Located]) -> dict[str, int]:
    """The bytes that each tensor takes in a blob, without its name and shape."""
    return {each.tensor.name: each.end - each.begin for each in located}


def located_in(tensors: Mapping[str, torch.Tensor]) -> tuple[Source, list[Located]]:
    """The blob of a coded file, read in parts if it lies in a file, and where in it each tensor is.

    Raises MakeweightError unless it is there, alone, a vector of bytes, and says what its tensors are.
    """
    source = tensors.sources.get(BLOB) if isinstance(tensors, LazyTensors) else tensors.get(BLOB)
    blob: Source | None = None
    if isinstance(source, Stored) and source.dtype == "U8" and len(source.shape) == 1:
        blob = source.bytes
    if isinstance(source, torch.Tensor) and source.dtype == torch.uint8 and source.ndim == 1:
        blob = source_of(source.numpy())
    if blob is None or len(tensors) != 1:
        raise MakeweightError("huffman: expected one tensor 'huffman' of bytes in the file")
    return blob, locate_all(blob)
