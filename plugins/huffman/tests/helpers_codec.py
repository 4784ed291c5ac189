"""Tensors of many kinds, and the two coded networks, for the codec's tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from makeweight_huffman.codec.container import Entry
from makeweight_huffman.codec.tensor import LAYOUTS

MAXIMA = {8: 0xFF, 16: 0xFFFF, 32: 0xFFFF_FFFF, 64: 0xFFFF_FFFF_FFFF_FFFF}


def random_words(seed: int, size: int, width: int, kind: str, density: float) -> NDArray[np.uint8]:
    """Bytes of `size` words of a kind (few, floats, uniform, constant), of which `density` differ from a background."""
    random = np.random.default_rng(seed)
    dtype = np.dtype(f"<u{width // 8}")
    if kind == "few":
        values = random.integers(0, MAXIMA[width], 1 + seed % 300, dtype=dtype, endpoint=True)
        words = random.choice(values, size, p=random.dirichlet(np.full(len(values), 0.3)))
    elif kind == "floats":
        floats = random.normal(0, 0.02, size)
        words = {
            8: lambda: (floats.astype("<f2").view("<u2") >> 8).astype(dtype),
            16: lambda: (floats.astype("<f4").view("<u4") >> 16).astype(dtype),
            32: lambda: floats.astype("<f4").view(dtype),
            64: lambda: floats.view(dtype),
        }[width]()
    elif kind == "uniform":
        words = random.integers(0, MAXIMA[width], size, dtype=dtype, endpoint=True)
    else:
        words = np.full(size, random.integers(0, MAXIMA[width], dtype=dtype, endpoint=True))
    words = np.where(random.random(size) < density, words, 0 if seed % 2 else words[:1].sum()).astype(dtype)
    return words.view(np.uint8)


def random_entry(seed: int, name: str, dtype: str, shape: tuple[int, ...], kind: str, density: float) -> Entry:
    """A random tensor for encode."""
    layout = LAYOUTS[dtype]
    size = int(np.prod(shape, dtype=np.int64)) * layout.element // layout.word
    return name, dtype, shape, random_words(seed, size, layout.word, kind, density)


def assert_equal(decoded: list[Entry], entries: list[Entry]) -> None:
    """Assert equal names, dtypes, shapes and bits."""
    assert [entry[:3] for entry in decoded] == [entry[:3] for entry in entries]
    for (name, _, _, got), (_, _, _, expected) in zip(decoded, entries, strict=True):
        assert np.array_equal(got, expected), name


def coded_network(name: str) -> list[Entry]:
    """The tensors of a network in the data directory; skips the test if it is missing."""
    path = Path(os.environ.get("MAKEWEIGHT_DATA", "data")) / "coded" / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is missing; MAKEWEIGHT_DATA should name the data directory")
    return read_safetensors(path.read_bytes())


def read_safetensors(file: bytes) -> list[Entry]:
    """The tensors of a safetensors file, sorted by name."""
    begin = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:begin])
    data = np.frombuffer(file, np.uint8)[begin:]
    return [
        (name, entry["dtype"], tuple(entry["shape"]), data[slice(*entry["data_offsets"])])
        for name, entry in sorted(header.items())
        if name != "__metadata__"
    ]
