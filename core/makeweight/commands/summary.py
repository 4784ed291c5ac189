"""Size statistics of an export and of its tensors, for summary.json and `trainer inspect`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from ..files.artifact import Artifact
from ..files.safetensors_file import header_size
from ..files.tensor_bytes import layout_of
from ..models.state import exported_state

CONTROL_LIMIT = 64 << 20
"""maximum size in bytes of the dense float32 file for which zstd -19 is measured"""
PIECE = 1 << 20
"""number of elements processed at a time"""


def export_summary(
    out: Path, written: Artifact, model: nn.Module, original: nn.Module, metrics: dict[str, float], metric: str
) -> dict[str, Any]:
    """The table `export` of summary.json. `metrics` are those of the model restored from the file.

    `dense_bytes` is the size of the original network in float32, also if its structure was changed. `plain_bytes` is
    the size of the current network in float32.
    """
    path = out / "model.safetensors"
    size = path.stat().st_size
    dense = {name: tensor.cpu() for name, tensor in exported_state(model).items()}
    plain = save({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in dense.items()})
    dense_bytes = plain_size(exported_state(original)) if written.records else len(plain)
    return {
        "path": path.name,
        "bytes": size,
        "dense_bytes": dense_bytes,
        "plain_bytes": len(plain),
        "ratio": round(dense_bytes / size, 3),
        metric: metrics[metric],
        "loss": metrics["loss"],
        "controls": controls(plain),
        "tensors": [tensor_facts(name, tensor, written.sizes.get(name)) for name, tensor in dense.items()],
    }


def plain_size(state: Mapping[str, torch.Tensor]) -> int:
    """The size in bytes of a safetensors file of these tensors in float32."""
    layouts = []
    for name, tensor in sorted(state.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        layouts.append(layout_of(name, torch.empty(tensor.shape, dtype=dtype, device="meta")))
    return header_size(layouts, {}) + sum(layout[3] for layout in layouts)


def controls(plain: bytes) -> dict[str, int]:
    """Sizes in bytes of the dense file under general-purpose compressors, for comparison."""
    if len(plain) > CONTROL_LIMIT:
        return {}
    import zstandard

    return {"zstd -19": len(zstandard.ZstdCompressor(level=19, threads=-1).compress(plain))}


def tensor_facts(name: str, tensor: torch.Tensor, coded: int | None = None) -> dict[str, Any]:
    """Shape, dtype, density and size of a tensor. `coded` is its size in the file in bytes, if that differs."""
    size = tensor.numel() * tensor.element_size() if coded is None else coded
    count = max(tensor.numel(), 1)
    return {
        "name": name,
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "density": round(nonzeros(tensor) / count, 6),
        "bits_per_weight": round(8 * size / count, 4),
        "bytes": size,
    }


def value_facts(tensor: torch.Tensor) -> dict[str, Any]:
    """The number of distinct bit patterns of a tensor, and their order-0 entropy in bits per element."""
    distinct, weighted = 0, 0.0
    for counts in pattern_counts(tensor):
        distinct += len(counts)
        weighted += float((counts * np.log2(counts)).sum())
    size = max(tensor.numel(), 1)
    return {"distinct": distinct, "entropy": round(max(math.log2(size) - weighted / size, 0.0), 4) + 0.0}


def pattern_counts(tensor: torch.Tensor) -> Iterator[NDArray[np.int64]]:
    """The counts of all distinct bit patterns, in several arrays. Needs memory for one copy of the tensor."""
    words = patterns(tensor).numpy()
    if words.itemsize <= 2:
        unsigned = words.view(f"u{words.itemsize}")
        parts = (np.bincount(part, minlength=1 << 16) for part in pieces(unsigned))
        counts = sum(parts, np.zeros(1 << 16, np.int64))
        yield counts[counts > 0]
        return
    begin = 0  # start of the current run of equal words
    for number, part in enumerate(pieces(ordered := np.sort(words))):
        first = number * PIECE
        before = ordered[max(first - 1, 0)]
        starts = np.flatnonzero(np.diff(part, prepend=before)) + first
        if len(starts):
            yield np.diff(starts, prepend=begin)
            begin = int(starts[-1])
    if words.size:
        yield np.array([words.size - begin])


def patterns(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of each element as an integer of the same width, [elements], for any dtype."""
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(widths[flat.element_size()])


def nonzeros(tensor: torch.Tensor) -> int:
    """The number of elements that are not zero; -0.0 counts as zero."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        tensor = patterns(tensor)
    small = tensor.is_floating_point() and tensor.element_size() < 4
    parts = tensor.reshape(-1).split(PIECE)
    return sum(int(torch.count_nonzero(part.float() if small else part)) for part in parts)


def pieces(words: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for begin in range(0, words.size, PIECE):
        yield words[begin : begin + PIECE]
