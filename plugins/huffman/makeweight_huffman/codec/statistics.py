"""Statistics for the encoder's choice of a plan: counts of words, and of parts of words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec import words
from makeweight_huffman.codec.coder import Words, readonly
from makeweight_huffman.codec.plan import MAX_CODEBOOK

CHUNK = 1 << 20  # words


@dataclass(frozen=True)
class Statistics:
    """Counts over the words of a tensor.

    width: bits of a word. size: number of words. zeros: number of zero words.
    trailing: number of low bits that are zero in all words.
    distinct, counts: the words that occur, ascending, and their counts; None for more than MAX_CODEBOOK words.
    high: (2**16,) counts of the upper 16 bits, or (2**8,) for words of 8 bits.
    low: (bytes, 2**8) counts of each byte below these.
    """

    width: int
    size: int
    zeros: int
    trailing: int
    distinct: NDArray[np.uint64] | None
    counts: NDArray[np.int64] | None
    high: NDArray[np.int64]
    low: NDArray[np.int64]

    @staticmethod
    def of(tensor: Words) -> Statistics:
        """Count the words of a tensor, (words,)."""
        width = 8 * tensor.itemsize
        high_width = min(width, 16)
        high = np.zeros((words.LANES, 1 << high_width), np.int64)
        low = np.zeros(((width - high_width) // 8, words.LANES, 256), np.int64)
        for chunk in chunks(tensor):
            words.count_field(chunk, width - high_width, high)
            for number, counts in enumerate(low):
                words.count_field(chunk, 8 * number, counts)
        found = count_all(high.sum(axis=0)) if width <= 16 else count_distinct(tensor)
        zeros = tensor.size - int(np.count_nonzero(tensor))
        used = int(np.bitwise_or.reduce(tensor))
        trailing = (used & -used).bit_length() - 1 if used else 0
        return Statistics(width, tensor.size, zeros, trailing, *found, high.sum(axis=0), low.sum(axis=1))

    def most_frequent(self) -> tuple[int, int]:
        """The most frequent word and its count; zero and its count if there are too many distinct words."""
        if self.distinct is None or self.counts is None:
            return 0, self.zeros
        place = int(self.counts.argmax())
        return int(self.distinct[place]), int(self.counts[place])

    def without(self, background: int, count: int) -> Statistics:
        """Statistics without the `count` background words."""
        distinct, counts = self.distinct, self.counts
        if distinct is not None and counts is not None:
            distinct, counts = distinct[distinct != background], counts[distinct != background]
        high, low = self.high.copy(), self.low.copy()
        high[background >> (self.width - min(self.width, 16))] -= count
        for number, row in enumerate(low):
            row[background >> (8 * number) & 0xFF] -= count
        zeros = self.zeros if background else 0
        return Statistics(self.width, self.size - count, zeros, self.trailing, distinct, counts, high, low)


def count_all(histogram: NDArray[np.int64]) -> tuple[NDArray[np.uint64] | None, NDArray[np.int64] | None]:
    """The words that occur and their counts, from a histogram over all words; None if there are too many."""
    present = np.flatnonzero(histogram)
    if len(present) > MAX_CODEBOOK:
        return None, None
    return present.astype(np.uint64), histogram[present]


def count_distinct(tensor: Words) -> tuple[NDArray[np.uint64] | None, NDArray[np.int64] | None]:
    """The words that occur in a tensor and their counts; None if there are too many, which stops the count early."""
    keys, counts = np.zeros(MAX_CODEBOOK, np.uint64), np.zeros(MAX_CODEBOOK, np.int64)
    slots = np.full(words.SLOTS, -1, np.int16)
    used = 0
    for chunk in chunks(tensor):
        used = words.count_distinct(chunk, slots, keys, counts, used)
        if used < 0:
            return None, None
    order = np.argsort(keys[:used])
    return keys[:used][order], counts[:used][order]


def chunks(tensor: Words) -> list[Words]:
    """The tensor in read-only chunks of CHUNK words."""
    return [readonly(tensor[begin : begin + CHUNK]) for begin in range(0, tensor.size, CHUNK)]
