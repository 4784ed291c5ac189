"""Damaged files with a corrected checksum: a one-line error naming the file, or bounded tensors, in bounded time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from makeweight import Artifact, MakeweightError, discovery, load_tensors
from makeweight.files import artifact
from makeweight.files.artifact import seal, write
from makeweight.loading import open_any
from makeweight_huffman.codec.entries import ALLOWANCE, EXPANSION
from makeweight_huffman.packing import pack, unpack

from .helpers_fuzz import MEMORY, SECONDS, file_mutations
from .helpers_memory import peak_memory

pytestmark = pytest.mark.slow  # hundreds of files are written and read

KINDS = ["packed", "export", "foreign"]


def original(kind: str, folder: Path) -> bytes:
    """The content of a packed file, of an uncoded export, or of a file of another writer."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 40, generator=random)
    tensors = {
        "fc.weight": torch.where(weight.abs() < 1, 0, (weight * 2).round()),
        "fc.bias": torch.randn(30, generator=random).bfloat16(),
        "steps": torch.tensor(7),
        "nothing": torch.empty(0, 3),
    }
    path = folder / f"{kind}.safetensors"
    if kind == "export":
        write(Artifact(dict(tensors)), path)
    else:
        save_file(tensors, path, metadata={"format": "pt"})
    if kind == "packed":
        pack(path, folder / "coded.safetensors")
        path = folder / "coded.safetensors"
    return path.read_bytes()


@contextmanager
def plugins_looked_up_once() -> Iterator[None]:
    """Cache the search for installed plugins, which takes five times as long as reading a small file."""
    once = cache(discovery.installed)
    with patch.object(discovery, "installed", once), patch.object(artifact, "installed", once):
        yield


@plugins_looked_up_once()
def fuzz_files(content: bytes, folder: Path, rounds: int, seed: int) -> int:
    """Read `rounds` mutations of a file, by all functions in turn; returns the number of refusals.

    Raises:
        AssertionError: if reading takes too long, the tensors exceed the limit, the message does not name the file, or
            an output file is left behind. Errors other than MakeweightError propagate.
    """
    refused = 0
    path, target = folder / "mutated.safetensors", folder / "target.safetensors"
    for number, mutation in enumerate(file_mutations(content, rounds, np.random.default_rng(seed))):
        path.write_bytes(mutation)
        if number % 8:  # otherwise the checksum stays wrong, as after accidental damage
            with suppress(MakeweightError, AssertionError):
                seal(path)
        begin = time.perf_counter()
        message = None
        try:
            if number % 32 == 1:
                unpack(path, target)
            elif number % 32 == 3:
                pack(path, target)
            else:
                tensors = load_tensors(path) if number % 2 else open_any(path).tensors
                decoded = sum(tensor.nbytes for tensor in tensors.values())
                assert decoded <= EXPANSION * len(mutation) + ALLOWANCE
        except MakeweightError as error:
            message = str(error)
        if message is not None:
            refused += 1
            assert path.name in message
            assert "\n" not in message
            assert not target.exists()
        target.unlink(missing_ok=True)
        assert time.perf_counter() - begin < SECONDS, mutation.hex()
    assert {each.name for each in folder.iterdir()} <= {path.name}
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_refused_in_one_line_or_bounded(kind: str, tmp_path: Path) -> None:
    content = original(kind, tmp_path)
    (tmp_path / "work").mkdir()
    with peak_memory() as peak:
        refused = fuzz_files(content, tmp_path / "work", rounds=1000, seed=KINDS.index(kind))
    assert refused > 500
    assert peak() < EXPANSION * len(content) + MEMORY


def test_a_packed_file_with_any_bit_flipped_is_refused(tmp_path: Path) -> None:
    content = original("packed", tmp_path)
    path = tmp_path / "flipped.safetensors"
    for position in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(MakeweightError, match=r"flipped\.safetensors"):
            load_tensors(path)
