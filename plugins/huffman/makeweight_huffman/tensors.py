"""Between torch's tensors and the codec's bytes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from makeweight import MakeweightError

from .codec.container import Blob, decode, describe, encode

NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.uint16: "U16",
    torch.int32: "I32", torch.uint32: "U32", torch.int64: "I64", torch.uint64: "U64", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}  # fmt: skip
DTYPES = {name: dtype for dtype, name in NAMES.items()}


def encode_tensors(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All tensors in one blob, uint8 [bytes]. Raises MakeweightError for a dtype that safetensors has not."""
    entries = []
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise MakeweightError(f"huffman: {name!r} is of {tensor.dtype}, which it cannot code")
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        entries.append((name, NAMES[tensor.dtype], tuple(tensor.shape), flat.view(torch.uint8).numpy()))
    return torch.frombuffer(bytearray(encode(entries)), dtype=torch.uint8)


def decode_tensors(blob: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `encode_tensors` was given, bit for bit. Raises FormatError for a blob that is not as it was written."""
    decoded = {}
    for name, dtype, shape, data in decode(_bytes(blob)):
        if dtype not in DTYPES:
            raise MakeweightError(f"huffman: {name!r} is of dtype {dtype}, which torch has not")
        flat = torch.from_numpy(data).view(DTYPES[dtype]) if data.size else torch.empty(0, dtype=DTYPES[dtype])
        decoded[name] = flat.reshape(shape)
    return decoded


def coded_sizes(blob: torch.Tensor) -> dict[str, int]:
    """The bytes that each tensor takes in a blob, without its name and shape."""
    return {each.name: each.coded_bytes for each in describe(_bytes(blob))}


def _bytes(blob: torch.Tensor) -> Blob:
    data: np.ndarray = blob.numpy()
    return data
