"""Conversion between tensors and bytes: dtypes, layouts, and tensors stored in a file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import MakeweightError
from .file_bytes import FileBytes

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip


BITS = {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""bits per element by safetensors dtype; torch does not have the last three"""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its header entry and its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: FileBytes

    def tensor(self) -> torch.Tensor:
        """Read the tensor. Raises MakeweightError for a dtype that torch does not have."""
        if self.dtype not in DTYPES:
            raise MakeweightError(f"{self.bytes.path}: {self.name!r} has dtype {self.dtype}, which torch does not have")
        if not len(self.bytes):
            return torch.empty(self.shape, dtype=DTYPES[self.dtype])
        return torch.frombuffer(self.bytes.read(), dtype=DTYPES[self.dtype]).reshape(self.shape)


Layout = tuple[str, str, tuple[int, ...], int]
"""name, safetensors dtype, shape and size in bytes of a tensor"""


def layout_of(name: str, tensor: torch.Tensor) -> Layout:
    """The layout of a tensor. Raises MakeweightError for a dtype that safetensors does not have."""
    for dtype, each in DTYPES.items():
        if each == tensor.dtype:
            return name, dtype, tuple(tensor.shape), tensor.nbytes
    raise MakeweightError(f"{name!r} has dtype {tensor.dtype}, which a safetensors file cannot hold")


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """The elements of a tensor as in a safetensors file: uint8 [bytes]."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: np.ndarray = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return array
