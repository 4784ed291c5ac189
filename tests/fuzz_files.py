"""Mutants of blobs, of whole safetensors files, and of their headers with a right length and checksum."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from makeweight import load
from makeweight.commands.summary import tensor_facts, value_facts
from makeweight.files.artifact import ZEROS, is_export, seal
from makeweight.files.tensor_bytes import BITS
from makeweight.loading import load_tensors, open_any
from makeweight_huffman.codec.bits import FormatError
from makeweight_huffman.codec.container import decode, describe
from makeweight_huffman.codec.entries import ALLOWANCE, EXPANSION
from makeweight_huffman.packing import pack, unpack

from .helpers_mutants import Attempt, accepts, as_text, changed, drawn, of_huffman, plugins_found_once

mutators, examples = of_huffman("helpers_fuzz"), of_huffman("test_file_fuzz")
ROUND = 60
"""mutants of one original at a time; each kind of mutation comes up in them"""


class Weights(nn.Module):
    """What the exports are of."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(40, 30)
        self.fc.bias = nn.Parameter(torch.zeros(30, dtype=torch.bfloat16))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("nothing", torch.empty(0, 3))


@contextmanager
def blobs(folder: Path, seed: int) -> Iterator[Attempt]:
    """Blobs of the codec, decoded."""
    originals = mutators.small_blobs()

    @lru_cache(maxsize=1)
    def mutants(turn: int) -> list[bytes]:
        return list(mutators.mutations(originals[turn % len(originals)], ROUND, np.random.default_rng([seed, turn])))

    def attempt(number: int) -> bool:
        blob = mutants(number // ROUND)[number % ROUND]
        try:
            describe(blob)
            decoded = sum(data.size for _, _, _, data in decode(blob))
        except FormatError as error:
            if "\n" in str(error):
                raise AssertionError("an error of several lines") from error
            return False
        assert decoded <= EXPANSION * len(blob) + ALLOWANCE, f"it decodes to {decoded:,} bytes"
        return True

    yield attempt


@contextmanager
def files(folder: Path, seed: int) -> Iterator[Attempt]:
    """Whole files, most of them with a right checksum, read in each of the ways that there are."""
    originals = contents(folder)

    @lru_cache(maxsize=1)
    def mutants(turn: int) -> list[bytes]:
        return list(
            mutators.file_mutations(originals[turn % len(originals)], ROUND, np.random.default_rng([seed, turn]))
        )

    with plugins_found_once():
        yield lambda number: is_read(mutants(number // ROUND)[number % ROUND], folder, number, number % 8 > 0)


@contextmanager
def headers(folder: Path, seed: int) -> Iterator[Attempt]:
    """Files whose headers are JSON with another value, name or shape somewhere, under a right length and checksum."""
    originals = [split(content) for content in contents(folder)]

    def attempt(number: int) -> bool:
        trees, data = originals[number % len(originals)]
        draw = drawn(seed, number)
        mutant = other_shapes(trees, draw) if draw.random() < 0.25 else changed(trees, draw)
        return is_read(joined(mutant, data), folder, number // len(originals), True)

    with plugins_found_once():
        yield attempt


def contents(folder: Path) -> list[bytes]:
    """A packed file, an export, and a file of others."""
    found = []
    for kind in examples.KINDS:
        (folder / kind).mkdir()
        found.append(examples.original(kind, folder / kind))
    return found


def is_read(content: bytes, folder: Path, number: int, sealed: bool) -> bool:
    """Whether a file is accepted by the reader of this number. It is refused with its name, and leaves nothing."""
    path, target = folder / "mutant.safetensors", folder / "target.safetensors"
    path.write_bytes(content)
    if sealed:
        with suppress(Exception):  # there may be no place for a checksum
            seal(path)

    def looked_at() -> None:
        for name, tensor in open_any(path).tensors.items():
            tensor_facts(name, tensor)
            value_facts(tensor)

    readers: list[Callable[[], object]] = [
        lambda: bounded(load_tensors(path), content), lambda: bounded(dict(open_any(path).tensors), content),
        looked_at, lambda: load(path, Weights()), lambda: is_export(path), lambda: pack(path, target),
        lambda: unpack(path, target),
    ]  # fmt: skip
    accepted = accepts(readers[number % len(readers)], said=path.name)
    assert accepted or not target.exists(), "it was refused, and something was written"
    target.unlink(missing_ok=True)
    return accepted


def bounded(tensors: dict[str, Tensor], content: bytes) -> None:
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size <= EXPANSION * len(content) + ALLOWANCE, f"{len(content):,} bytes gave {size:,}"


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a file and what our entry in it holds, as JSON; and the bytes after it."""
    end = 8 + int.from_bytes(content[:8], "little")
    trees = {"header": json.loads(content[8:end])}
    metadata = trees["header"].get("__metadata__", {})
    if "makeweight" in metadata:
        trees["entry"] = json.loads(metadata["makeweight"][18:])
        metadata["makeweight"] = ""
    return trees, content[end:]


def joined(trees: dict[str, Any], data: bytes) -> bytes:
    """A file of a header, our entry in it, and the bytes after it."""
    header = trees.get("header", {})
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(metadata, dict) and metadata.get("makeweight") == "":
        metadata["makeweight"] = f"1 {ZEROS.decode()} {as_text(trees.get('entry', {}))}"
        header = {"__metadata__": metadata, **header}
    text = as_text(header).replace('": "1 000', '":"1 000').encode()  # as we write it, or the entry is not found
    text = text.replace(b'"makeweight": "', b'"makeweight":"')
    return len(text).to_bytes(8, "little") + text + data


def other_shapes(trees: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A header that fits its bytes, with a tensor of another dtype and shape."""
    found = copy.deepcopy(trees)
    entry = found["header"][draw.choice([name for name in found["header"] if name != "__metadata__"])]
    bits = 8 * (entry["data_offsets"][1] - entry["data_offsets"][0])
    dtype = draw.choice([name for name in BITS if bits % BITS[name] == 0])
    rest = bits // BITS[dtype]
    shape: list[int] = []
    while rest > 1 and len(shape) < 8:
        shape.append(draw.choice([each for each in (1, 2, 3, 4, 5, 7, rest) if rest % each == 0]))
        rest //= shape[-1]
    shape += [rest] if rest != 1 else []
    draw.shuffle(shape)
    assert math.prod(shape) * BITS[dtype] == bits
    entry |= {"dtype": dtype, "shape": shape}
    return found
