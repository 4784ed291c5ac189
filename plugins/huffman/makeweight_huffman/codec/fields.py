"""Fields: bit ranges of the words, each Huffman-coded or raw, and their headers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec import codes, neighbours
from makeweight_huffman.codec.bits import BitReader, BitWriter, FormatError

RAW_WIDTH = 32  # bits, upper limit of a raw field
CODED_WIDTH = 16  # bits, upper limit of a coded field


@dataclass(frozen=True)
class Field:
    """Bits shift .. shift + width - 1 of every word, and their code.

    alphabet: values that occur, ascending, (symbols,) uint16; None for a raw field.
    lengths: code lengths, (1 or CONTEXTS, symbols) uint8; zero if there is only one symbol. None for a raw field.
    """

    shift: int
    width: int
    alphabet: NDArray[np.uint16] | None = None
    lengths: NDArray[np.uint8] | None = None

    @property
    def mask(self) -> int:
        return (1 << self.width) - 1

    @property
    def in_context(self) -> bool:
        return self.lengths is not None and len(self.lengths) > 1

    @property
    def has_highest_bit(self) -> bool:
        """Whether any symbol has the field's highest bit set."""
        return self.alphabet is not None and bool(self.alphabet[-1] >> (self.width - 1))

    def write_header(self, writer: BitWriter, contexts: bool) -> None:
        """Append the header. `contexts`: whether a code per context is possible here."""
        writer.bits(self.alphabet is not None, 1)
        if self.alphabet is None or self.lengths is None:
            return
        writer.exp_golomb(len(self.alphabet) - 1, 4)
        full = np.array_equal(self.alphabet, np.arange(len(self.alphabet)))
        writer.bits(full, 1)
        if not full:
            write_ascending(writer, self.alphabet.astype(np.uint64), self.width)
        if len(self.alphabet) > 1:
            if contexts:
                writer.bits(self.in_context, 1)
            for row in self.lengths:
                codes.write_lengths(writer, row)

    @staticmethod
    def read_header(reader: BitReader, shift: int, width: int, contexts: bool) -> Field:
        """Inverse of `write_header`, for the given bits of the words.

        Raises:
            FormatError: if the header is damaged.
        """
        if not reader.bits(1):
            if width > RAW_WIDTH:
                raise FormatError(f"a raw field has {width} bits, expected at most {RAW_WIDTH}")
            return Field(shift, width)
        count = reader.exp_golomb(4) + 1
        if count > min(codes.ALPHABET, 1 << width) or width > CODED_WIDTH:
            raise FormatError(f"an alphabet of {count} symbols does not fit {min(width, 8)} bits")
        if reader.bits(1):
            alphabet = np.arange(count, dtype=np.uint16)
        else:
            alphabet = read_ascending(reader, count, width).astype(np.uint16)
        if count == 1:
            return Field(shift, width, alphabet, np.zeros((1, 1), np.uint8))
        rows = neighbours.CONTEXTS if contexts and reader.bits(1) else 1
        lengths = np.stack([codes.read_lengths(reader, count) for _ in range(rows)])
        if rows == 1 and not lengths.all():
            raise FormatError("a Huffman code lacks a symbol of its alphabet")
        return Field(shift, width, alphabet, lengths)


def write_ascending(writer: BitWriter, values: NDArray[np.uint64], width: int) -> None:
    """Append strictly ascending numbers of `width` bits: the first, then each difference minus 1."""
    numbers = [int(value) for value in values]
    steps = [high - low - 1 for low, high in pairwise(numbers)]
    writer.bits(numbers[0], width)
    if steps:
        middle = sorted(steps)[len(steps) // 2].bit_length()  # near the best order
        orders = range(max(0, middle - 4), min(width, middle + 2))
        order = min(orders, key=lambda k: sum(2 * ((step >> k) + 1).bit_length() + k for step in steps))
        writer.bits(order, 6)
        for step in steps:
            writer.exp_golomb(step, order)


def read_ascending(reader: BitReader, count: int, width: int) -> NDArray[np.uint64]:
    """Inverse of `write_ascending`: numbers (count,).

    Raises:
        FormatError: if a number does not fit `width` bits.
    """
    values = [reader.bits(width)]
    order = reader.bits(6) if count > 1 else 0
    while len(values) < count:
        values.append(values[-1] + reader.exp_golomb(order) + 1)
        if values[-1] >> width:
            raise FormatError(f"a value does not fit {width} bits")
    return np.array(values, np.uint64)
