"""The encoder's choice of fields: where to cut words, and which parts get a code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec import codes
from makeweight_huffman.codec.bits import BitWriter
from makeweight_huffman.codec.fields import RAW_WIDTH, Field
from makeweight_huffman.codec.statistics import Statistics

UNIFORM = 0.998  # a part with an entropy above this fraction of its width gets no code
ADDED_BITS = 3  # most mantissa bits that share a code with sign and exponent


def word_fields(statistics: Statistics, sign_and_exponent: int) -> tuple[float, tuple[Field, ...]]:
    """(estimated bits, fields) for words without a codebook: sign and exponent of floats together, the rest in bytes.

    sign_and_exponent: bits above the mantissa in a float's word; 0 for integers.
    """
    width, trailing = statistics.width, statistics.trailing
    low = [best_field(*above(trailing, 8 * number, 8, counts)) for number, counts in enumerate(statistics.low)]
    low = low[trailing // 8 :]
    high_width = min(width, 16)
    shift, high_width, high = above(trailing, width - high_width, high_width, statistics.high)
    tops = range(sign_and_exponent, sign_and_exponent + ADDED_BITS + 1) if sign_and_exponent else ()
    ways = []
    for top in {min(8, high_width), *(top for top in tops if top <= high_width)}:
        parts = [*low, *cut_counts(high, shift, high_width - top)]
        ways.append((sum(bits for bits, _ in parts), merge_raw([field for _, field in parts])))
    return min(ways, key=lambda way: way[0])


def above(trailing: int, shift: int, width: int, counts: NDArray[np.int64]) -> tuple[int, int, NDArray[np.int64]]:
    """A part of the words as (shift, width, counts) without those of its bits that lie in the `trailing` low ones."""
    cut = min(max(trailing - shift, 0), width)
    return shift + cut, width - cut, counts[:: 1 << cut]


def index_fields(counts: NDArray[np.int64]) -> tuple[float, tuple[Field, ...]]:
    """(estimated bits, fields) for indices into a codebook. counts: (values,), of each index."""
    width = (len(counts) - 1).bit_length()
    if width == 0:
        return 0.0, ()
    if width <= 8:
        bits, field = best_field(0, width, counts)
        return bits, (field,)
    parts = cut_counts(np.pad(counts, (0, (1 << width) - len(counts))), 0, width - 8)
    return sum(bits for bits, _ in parts), merge_raw([field for _, field in parts])


def cut_counts(counts: NDArray[np.int64], shift: int, low: int) -> list[tuple[float, Field]]:
    """Split a part of words, from bit `shift` on, into its `low` low bits and the rest. counts: (2**width,)."""
    width = (len(counts) - 1).bit_length()
    table = counts.reshape(-1, 1 << low)
    upper = best_field(shift + low, width - low, table.sum(axis=1))
    return [best_field(shift, low, table.sum(axis=0)), upper] if low else [upper]


def best_field(shift: int, width: int, counts: NDArray[np.int64]) -> tuple[float, Field]:
    """(bits, field), coded if that saves bits. counts: (2**width,), or fewer if the rest are zero."""
    size = int(counts.sum())
    raw = float(size * width), Field(shift, width)
    alphabet = np.flatnonzero(counts)
    share = counts[alphabet] / max(size, 1)
    if not 1 <= len(alphabet) <= codes.ALPHABET or -(share * np.log2(share)).sum() > UNIFORM * width:
        return raw
    lengths = codes.code_lengths(counts[alphabet])
    field = Field(shift, width, alphabet.astype(np.uint16), lengths[None])
    return min(raw, (float((counts[alphabet] * lengths).sum() + header_bits(field)), field), key=lambda way: way[0])


def header_bits(field: Field) -> int:
    """Size of the field's header in bits."""
    writer = BitWriter()
    field.write_header(writer, contexts=False)
    return len(writer)


def merge_raw(fields: list[Field]) -> tuple[Field, ...]:
    """The same fields, lowest first, with adjacent uncoded ones merged up to RAW_WIDTH bits."""
    merged: list[Field] = []
    for field in fields:
        last = merged[-1] if merged else None
        if last and last.alphabet is None and field.alphabet is None and last.width + field.width <= RAW_WIDTH:
            merged[-1] = Field(last.shift, last.width + field.width)
        else:
            merged.append(field)
    return tuple(merged)
