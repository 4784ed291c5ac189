"""Encoding and decoding of one tensor: layouts of the dtypes, header of the body, blocks."""

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
    """Layout of a dtype: bits of an element, bits of the words that it is coded in, bits above a float's mantissa."""

    element: int
    word: int
    sign_and_exponent: int = 0


# The names of safetensors. Their order is part of the format: a dtype is stored as its index here.
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
MAX_RANK = 64  # dimensions; the limit of NumPy and PyTorch


@dataclass(frozen=True)
class Tensor:
    """Name, dtype and shape of a tensor in a blob."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the elements in bytes."""
        return math.prod(self.shape) * LAYOUTS[self.dtype].element // 8

    @property
    def num_words(self) -> int:
        """Number of words that the elements are coded in."""
        return self.num_bytes * 8 // LAYOUTS[self.dtype].word

    @property
    def columns(self) -> int:
        """Number of words in a row; a row is everything with the same first index. All words for a vector."""
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return max(1, self.num_words // max(1, rows))

    def check(self) -> None:
        """Check dtype and shape.

        Raises:
            FormatError: if the dtype is unknown, or the shape is invalid or too large.
        """
        if self.dtype not in LAYOUTS:
            raise FormatError(f"tensor {self.name!r} has dtype {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if len(self.shape) > MAX_RANK:
            raise FormatError(f"tensor {self.name!r} has {len(self.shape)} dimensions, expected at most {MAX_RANK}")
        if any(extent < 0 for extent in self.shape) or math.prod(filter(None, self.shape)) >= 1 << 60:
            raise FormatError(f"tensor {self.name!r} has an impossible shape: {self.shape}")
        if math.prod(self.shape) * LAYOUTS[self.dtype].element % 8:
            raise FormatError(f"tensor {self.name!r} of {self.dtype} does not fill whole bytes: shape {self.shape}")


@dataclass(frozen=True)
class Located:
    """A tensor, the byte range of its body in the blob, and the blob's version."""

    tensor: Tensor
    begin: int
    end: int
    version: int


def encode_elements(
    tensor: Tensor, data: NDArray[np.uint8], keep: Callable[[bytes], None], threads: int = 1
) -> tuple[bytes, int]:
    """Encode a tensor. `keep` is called with each encoded block in order. data: (bytes,) uint8, little-endian.

    Returns:
        The part of the body that precedes the blocks, and the first format version that decodes the body.

    Raises:
        FormatError: if dtype or shape is invalid, or the data has another size.
    """
    tensor.check()
    if data.dtype != np.uint8 or data.shape != (tensor.num_bytes,):
        raise FormatError(
            f"tensor {tensor.name!r} has {data.size} bytes of {data.dtype}, expected {tensor.num_bytes} of uint8"
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
    """Decode a tensor's body into out (bytes,) uint8.

    Raises:
        FormatError: if the body is damaged.
    """
    if coder := _coder_of(located, source):
        coder[0].decode(source, coder[1], located.end, words_of(out, coder[0].plan.width), threads)


def decoded_elements(located: Located, source: Source, threads: int = 1) -> Iterator[NDArray[np.uint8]]:
    """Decode a tensor's body block by block, (bytes,) each, in little memory. Raises FormatError if it is damaged."""
    if coder := _coder_of(located, source):
        for block in coder[0].decoded(source, coder[1], located.end, threads):
            yield block.view(np.uint8)


def read_plan(located: Located, source: Source) -> tuple[Plan, int]:
    """Plan of a tensor with elements, and the byte after its header. Raises FormatError if the header is damaged."""
    width = LAYOUTS[located.tensor.dtype].word
    return Plan.read(source, located.begin, located.end, width, located.version)


def words_of(data: NDArray[np.uint8], width: int) -> Words:
    """View of the bytes as little-endian unsigned words of `width` bits."""
    return data.view(np.dtype(f"<u{width // 8}"))


def _shortest(plans: list[Plan], tensor: Tensor, elements: Words, threads: int) -> tuple[Plan, Iterable[bytes]]:
    """The plan with the fewest bytes, and its blocks. A single plan's blocks are encoded lazily."""
    coded = [(plan, BodyCoder(plan, tensor.num_words, tensor.columns).encode(elements, threads)) for plan in plans]
    if len(coded) == 1:
        return coded[0]
    tried = [(plan, list(blocks)) for plan, blocks in coded]
    return min(tried, key=lambda each: len(each[0].to_bytes()) + sum(map(len, each[1])))


def _coder_of(located: Located, source: Source) -> tuple[BodyCoder, int] | None:
    """Decoder of a body, and the byte after its header; None for a tensor without elements. Raises FormatError."""
    tensor, size = located.tensor, located.end - located.begin
    if not tensor.num_words:
        if size:
            raise FormatError(f"tensor {tensor.name!r} has no elements but a body of {size} bytes")
        return None
    plan, at = read_plan(located, source)
    return BodyCoder(plan, tensor.num_words, tensor.columns), at
