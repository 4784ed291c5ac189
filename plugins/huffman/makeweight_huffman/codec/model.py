"""What the header of a sparse tensor says of its positions: the model that tells cells' classes, and their codes."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec.bits import BitReader, BitWriter, FormatError

CLASSES = 32
LAST_DIVISOR = 80


@dataclass(frozen=True)
class Model:
    """What tells a cell's class: the weights (sixteenths) of each hint, and how many scores make one class."""

    lag: int = 1  # 1 ..: the distance of a second neighbour, in an image its width
    column_weight: int = 10  # 0 .. 31
    row_weight: int = 10  # 0 .. 31
    left_weight: int = 16  # 0 .. 63
    lag_weight: int = 16  # 0 .. 63
    coarseness: int = 7  # 0 .. 15: a class is 2**coarseness sixteenths of a score wide
    start: int = 4  # 0 .. 15: densities begin at 2**-start

    def parameters(self) -> NDArray[np.int64]:
        """What the kernels take: shape (7,)."""
        return np.array(astuple(self), np.int64)

    def write(self, writer: BitWriter) -> None:
        writer.exp_golomb(self.lag - 1, 4)
        for value, width in zip(astuple(self)[1:], (5, 5, 6, 6, 4, 4), strict=True):
            writer.bits(value, width)

    @staticmethod
    def read(reader: BitReader) -> Model:
        lag = reader.exp_golomb(4) + 1
        if lag >= 1 << 32:
            raise FormatError(f"a lag of {lag} is not below 2**32")
        return Model(lag, *(reader.bits(width) for width in (5, 5, 6, 6, 4, 4)))


def golomb_divisor(index: int) -> int:
    """The divisor of a Golomb code by its number, from 1 on: 1 to 8, then four to a factor of two."""
    return index if index < 4 else (4 + index % 4) << (index // 4 - 1)


DIVISORS = np.array([0] + [golomb_divisor(index) for index in range(1, LAST_DIVISOR + 1)], np.int64)


def write_divisors(writer: BitWriter, indices: NDArray[np.int64]) -> None:
    """Append the numbers of the classes' divisors, 0 for a class without runs; shape (CLASSES,), at least one not 0."""
    used = np.flatnonzero(indices)
    writer.bits(int(used[0]), 5)
    writer.exp_golomb(int(used[-1] - used[0]), 2)
    previous = int(indices[used[0]])
    writer.bits(previous, 7)
    for index in indices[used[0] + 1 : used[-1] + 1].tolist():
        writer.signed((index or previous) - previous)
        previous = index or previous


def read_divisors(reader: BitReader) -> NDArray[np.int64]:
    """The numbers of the classes' divisors: shape (CLASSES,), 0 for a class that is not to come.

    Raises:
        FormatError: when a number is out of range.
    """
    divisors = np.zeros(CLASSES, np.int64)
    first = reader.bits(5)
    last = first + reader.exp_golomb(2)
    if last >= CLASSES:
        raise FormatError(f"class {last} of the positions is not below {CLASSES}")
    index = reader.bits(7)
    for kind in range(first, last + 1):
        index += reader.signed() if kind > first else 0
        divisors[kind] = checked_divisor(index)
    return divisors


def checked_divisor(index: int) -> int:
    """The number of a divisor, as given.

    Raises:
        FormatError: when there is no such divisor.
    """
    if not 1 <= index <= LAST_DIVISOR:
        raise FormatError(f"divisor {index} of the positions is not from 1 to {LAST_DIVISOR}")
    return index
