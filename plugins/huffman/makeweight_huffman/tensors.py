"""Between torch's tensors and the codec's bytes."""

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
        decode_elements(self.located, self.blob, data)
        dtype = DTYPES[what.dtype]
        flat = torch.from_numpy(data).view(dtype) if data.size else torch.empty(0, dtype=dtype)
        return flat.reshape(what.shape)


def coded_sizes(located: Sequence[Located]) -> dict[str, int]:
    """The bytes that each tensor takes in a blob, without its name and shape."""
    return {each.tensor.name: each.end - each.begin for each in located}


def located_in(tensors: Mapping[str, torch.Tensor], limit: int | None = None) -> tuple[Source, list[Located]]:
    """The blob of a coded file, read in parts if it lies in a file, and where in it each tensor is.

    `limit`: bytes that the decoded tensors may take. Raises MakeweightError unless the blob is there, alone, a vector
    of bytes, and says what its tensors are.
    """
    source = tensors.sources.get(BLOB) if isinstance(tensors, LazyTensors) else tensors.get(BLOB)
    blob: Source | None = None
    if isinstance(source, Stored) and source.dtype == "U8" and len(source.shape) == 1:
        blob = source.bytes
    if isinstance(source, torch.Tensor) and source.dtype == torch.uint8 and source.ndim == 1:
        blob = source_of(source.numpy())
    if blob is None or len(tensors) != 1:
        raise MakeweightError("huffman: expected one tensor 'huffman' of bytes in the file")
    if len(blob) > 1:
        check_names(read_varint(blob, 1)[0])
    located = locate_all(blob)
    check_names(len(located), (each.tensor.name for each in located))
    decoded = sum(each.tensor.num_bytes for each in located)
    if limit is not None and decoded > limit:
        raise MakeweightError(
            f"huffman: its tensors take {decoded:,} bytes decoded, more than the {limit:,} allowed: "
            f"--max-bytes {decoded} of inspect, evaluate and unpack, or limit={decoded} of makeweight.load, allows them"
        )
    return blob, located
