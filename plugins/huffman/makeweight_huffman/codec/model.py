"""Header of the positions in a sparse tensor: the model that assigns classes to cells, and a divisor per class.

A cell is the place of one word in a block. It is occupied if its word differs from the background.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec.bits import BitReader, BitWriter, FormatError

CLASSES = 32
LAST_DIVISOR = 80


@dataclass(frozen=True)
class Model:
    """Parameters that determine a cell's class: weights of four scores (in 1/16), and the width of a class."""

    lag: int = 1  # 1 ..: distance of the second neighbour, for example the width of an image
    column_weight: int = 10  # 0 .. 31
    row_weight: int = 10  # 0 .. 31
    left_weight: int = 16  # 0 .. 63
    lag_weight: int = 16  # 0 .. 63
    coarseness: int = 7  # 0 .. 15: a class spans 2**coarseness / 16 units of score
    start: int = 4  # 0 .. 15: initial density estimate 2**-start

    def parameters(self) -> NDArray[np.int64]:
        """Parameters (7,) for the kernels, in the order of the fields."""
        return np.array(astuple(self), np.int64)

    def write(self, writer: BitWriter) -> None:
        writer.exp_golomb(self.lag - 1, 4)
        for value, width in zip(astuple(self)[1:], (5, 5, 6, 6, 4, 4), strict=True):
            writer.bits(value, width)

    @staticmethod
    def read(reader: BitReader) -> Model:
        lag = reader.exp_golomb(4) + 1
        if lag >= 1 << 32:
            raise FormatError(f"a lag of {lag}, expected less than 2**32")
        return Model(lag, *(reader.bits(width) for width in (5, 5, 6, 6, 4, 4)))


def golomb_divisor(index: int) -> int:
    """Divisor of a Golomb code by its index, from 1 on: 1 to 8, then four per octave."""
    return index if index < 4 else (4 + index % 4) << (index // 4 - 1)


DIVISORS = np.array([0] + [golomb_divisor(index) for index in range(1, LAST_DIVISOR + 1)], np.int64)


def write_divisors(writer: BitWriter, indices: NDArray[np.int64]) -> None:
    """Append divisor indices (CLASSES,), 0 for a class without runs; at least one is nonzero."""
    used = np.flatnonzero(indices)
    writer.bits(int(used[0]), 5)
    writer.exp_golomb(int(used[-1] - used[0]), 2)
    previous = int(indices[used[0]])
    writer.bits(previous, 7)
    for index in indices[used[0] + 1 : used[-1] + 1].tolist():
        writer.signed((index or previous) - previous)
        previous = index or previous


def read_divisors(reader: BitReader) -> NDArray[np.int64]:
    """Divisor indices (CLASSES,), 0 for a class that must not occur.

    Raises:
        FormatError: if an index is out of range.
    """
    divisors = np.zeros(CLASSES, np.int64)
    first = reader.bits(5)
    last = first + reader.exp_golomb(2)
    if last >= CLASSES:
        raise FormatError(f"class {last} of the positions, expected less than {CLASSES}")
    index = reader.bits(7)
    for kind in range(first, last + 1):
        index += reader.signed() if kind > first else 0
        divisors[kind] = checked_divisor(index)
    return divisors


def checked_divisor(index: int) -> int:
    """Return the divisor index unchanged.

    Raises:
        FormatError: if it is out of range.
    """
    if not 1 <= index <= LAST_DIVISOR:
        raise FormatError(f"divisor index {index} of the positions, expected 1 to {LAST_DIVISOR}")
    return index
