"""One tensor, to bytes and back: its dtype's layout, the header of its body, and the blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec.bits import FormatError, Source, write_varint
from makeweight_huffman.codec.body import BodyCoder
from makeweight_huffman.codec.choice import candidate_plans
from makeweight_huffman.codec.coder import Words
from makeweight_huffman.codec.plan import FIRST_VERSION, Plan


@dataclass(frozen=True)
class Layout:
    """Of one dtype: bits of an element; bits of the words that it is coded in; those before a float's mantissa."""

    element: int
    word: int
    sign_and_exponent: int = 0


# The names are safetensors'. Their order is part of the format: a tensor's dtype is written as its number here.
LAYOUTS = {
    "BOOL": Layout(8, 8),
    "U8": Layout(8, 8),
    "I8": Layout(8, 8),
    "F8_E4M3": Layout(8, 8),
    "F8_E5M2": Layout(8, 8),
    "F8_E8M0": Layout(8, 8),
    "F8_E4M3FNUZ": Layout(8, 8),
    "F8_E5M2FNUZ": Layout(8, 8),
    "I16": Layout(16, 16),
    "U16": Layout(16, 16),
    "F16": Layout(16, 16, 6),
    "BF16": Layout(16, 16, 9),
    "I32": Layout(32, 32),
    "U32": Layout(32, 32),
    "F32": Layout(32, 32, 9),
    "I64": Layout(64, 64),
    "U64": Layout(64, 64),
    "F64": Layout(64, 64, 12),
    "C64": Layout(64, 32, 9),
    "F4": Layout(4, 8),
    "F6_E2M3": Layout(6, 8),
    "F6_E3M2": Layout(6, 8),
}
DTYPES = list(LAYOUTS)
MAX_RANK = 64  # dimensions, as many as NumPy and PyTorch allow


@dataclass(frozen=True)
class Tensor:
    """What a blob says of a tensor besides its elements."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Of the elements."""
        return math.prod(self.shape) * LAYOUTS[self.dtype].element // 8

    @property
    def num_words(self) -> int:
        """Of the numbers that the elements are coded as."""
        return self.num_bytes * 8 // LAYOUTS[self.dtype].word

    @property
    def columns(self) -> int:
        """The words in a row, a row being all that shares the first index; of vectors, all."""
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return max(1, self.num_words // max(1, rows))

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            FormatError: when the dtype is unknown, or no memory holds the shape.
        """
        if self.dtype not in LAYOUTS:
            raise FormatError(f"tensor {self.name!r} has the dtype {self.dtype!r}, not one of {', '.join(DTYPES)}")
        if len(self.shape) > MAX_RANK:
            raise FormatError(f"tensor {self.name!r} has {len(self.shape)} dimensions, more than {MAX_RANK}")
        if any(extent < 0 for extent in self.shape) or math.prod(filter(None, self.shape)) >= 1 << 60:
            raise FormatError(f"tensor {self.name!r} has a shape that no memory holds: {self.shape}")
        if math.prod(self.shape) * LAYOUTS[self.dtype].element % 8:
            raise FormatError(f"tensor {self.name!r} of {self.dtype} does not fill whole bytes: shape {self.shape}")


@dataclass(frozen=True)
class Located:
    """A tensor, where its body lies in the blob, and the blob's version."""

    tensor: Tensor
    begin: int
    end: int
    version: int


def encode_elements(
    tensor: Tensor, data: NDArray[np.uint8], keep: Callable[[bytes], None], threads: int = 1
) -> tuple[bytes, int]:
    """Code a tensor: `keep` is given its blocks one after the other.

    data: (bytes,), little-endian.

    Returns:
        What the body has before the blocks, and the first version of the format that reads it so.

    Raises:
        FormatError: when the tensor cannot be, or the data are not of its size.
    """
    tensor.check()
    if data.dtype != np.uint8 or data.shape != (tensor.num_bytes,):
        raise FormatError(
            f"tensor {tensor.name!r} has {data.size} bytes of {data.dtype}, not {tensor.num_bytes} of uint8"
        )
    if not tensor.num_words:
        return b"", FIRST_VERSION
    layout = LAYOUTS[tensor.dtype]
    elements = words_of(np.ascontiguousarray(data), layout.word)
    plan, blocks = _shortest(
        candidate_plans(elements, tensor.columns, layout.sign_and_exponent), tensor, elements, threads
    )
    lengths = []
    for block in blocks:
        keep(block)
        lengths.append(write_varint(len(block)))
    return plan.to_bytes() + (b"".join(lengths) if len(lengths) > 1 else b""), plan.oldest_version


def decode_elements(located: Located, source: Source, out: NDArray[np.uint8], threads: int = 1) -> None:
    """Fill out (bytes,) with what a tensor's body in the blob says.

    Raises:
        FormatError: when it is damaged.
    """
    if coder := _coder_of(located, source):
        coder[0].decode(source, coder[1], located.end, words_of(out, coder[0].plan.width), threads)


def decoded_elements(located: Located, source: Source, threads: int = 1) -> Iterator[NDArray[np.uint8]]:
    """The same in pieces, (bytes,) each, that take little memory however large the tensor is."""
    if coder := _coder_of(located, source):
        for block in coder[0].decoded(source, coder[1], located.end, threads):
            yield block.view(np.uint8)


def read_plan(located: Located, source: Source) -> tuple[Plan, int]:
    """How a tensor with elements is written, and the byte after its body's header; raises FormatError if damaged."""
    width = LAYOUTS[located.tensor.dtype].word
    return Plan.read(source, located.begin, located.end, width, located.version)


def words_of(data: NDArray[np.uint8], width: int) -> Words:
    """The same bytes as unsigned numbers of `width` bits."""
    return data.view(np.dtype(f"<u{width // 8}"))


def _shortest(plans: list[Plan], tensor: Tensor, elements: Words, threads: int) -> tuple[Plan, Iterable[bytes]]:
    """The plan under which a tensor takes the fewest bytes, and its blocks; of a single plan they are not yet made."""
    coded = [(plan, BodyCoder(plan, tensor.num_words, tensor.columns).encode(elements, threads)) for plan in plans]
    if len(coded) == 1:
        return coded[0]
    tried = [(plan, list(blocks)) for plan, blocks in coded]
    return min(tried, key=lambda each: len(each[0].to_bytes()) + sum(map(len, each[1])))


def _coder_of(located: Located, source: Source) -> tuple[BodyCoder, int] | None:
    """What reads a body, and the byte after its header; None for a tensor without elements."""
    tensor, size = located.tensor, located.end - located.begin
    if not tensor.num_words:
        if size:
            raise FormatError(f"tensor {tensor.name!r} is empty but has {size} bytes")
        return None
    plan, at = read_plan(located, source)
    return BodyCoder(plan, tensor.num_words, tensor.columns), at
