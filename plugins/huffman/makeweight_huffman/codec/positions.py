"""Positions of the words other than the background: runs of background cells, in classes of similar density.

Cells are visited in order. The class of a cell depends on earlier cells only: the occupied fraction of its column, the
occupied fraction of the cells just before it, and whether the cells at distance 1 and `lag` before it are occupied.
Every class has its own runs (numbers of background cells of this class between two occupied ones) in its own Golomb
code, which is the Huffman code of a geometric distribution. A run is written when its first cell is reached.

Source: Golomb, Run-length encodings, 1966; Gallager and Van Voorhis, Optimal source codes for geometrically distributed
integer alphabets, 1975.
"""

# mypy: disable-error-code="assignment, arg-type, return-value"
# (Kernels mix Python and NumPy integers.)
from __future__ import annotations

import math

import numpy as np

from makeweight_huffman.codec.compiled import kernel
from makeweight_huffman.codec.model import CLASSES
from makeweight_huffman.codec.runs import read_run
from makeweight_huffman.codec.streams import finish

OCTAVE = 8  # units of score per factor of two in density
DENSITY_BITS = 24  # a density is a fixed-point number below 1
SCORE_BITS = 12  # leading bits of a density that index SCORES, which fits the L1 cache
ROW_STEP = 65536 >> 7  # step of the running mean over about 2**7 previous cells
COLUMN_START, COLUMN_ROWS = 5, 256  # a column's mean starts as if after 5 rows; later over about 256

# Score of a density by its leading bits: OCTAVE * log2(density), rounded to nearest; leading bits of 0 count as 1/2.
SCORES = np.array([-OCTAVE] + [round(OCTAVE * math.log2(n)) for n in range(1, 1 << SCORE_BITS)], np.int64)
SCORES -= OCTAVE * SCORE_BITS


@kernel
def score_of(rate: int, scores: np.ndarray) -> int:
    """Score of a density."""
    result: int = scores[np.uint64(rate) >> np.uint64(DENSITY_BITS - SCORE_BITS)]
    return result


@kernel
def neighbours_score(i: int, lag: int, left_weight: int, lag_weight: int, occupied: np.ndarray) -> int:
    """Contribution of the two neighbours of cell i to its score, given occupied[:i]."""
    score = 0
    if i >= 1:
        score += left_weight * occupied[np.uint64(i - 1)]
    if i >= lag:
        score += lag_weight * occupied[np.uint64(i - lag)]
    return score * OCTAVE


@kernel
def class_of(score: int, coarseness: int) -> int:
    """Class of a cell by its score, from 0 (densest) to CLASSES - 1."""
    return min(max(-score >> coarseness, 0), CLASSES - 1)


@kernel
def first_rate(start: int) -> int:
    """Initial density of columns and rows, 2**-start."""
    return min(1 << (DENSITY_BITS - start), (1 << DENSITY_BITS) - 1)


@kernel
def column_step(row: int) -> int:
    """Step (in 1/2**16) of a column's running mean at the given row."""
    return 65536 // min(COLUMN_START + row, COLUMN_ROWS)


@kernel
def moved(rate: int, step: int, here: int) -> int:
    """The running mean after a cell: moved by step/2**16 towards 1 (`here` = 1) or 0."""
    return rate + (((here * ((1 << DENSITY_BITS) - 1) - rate) * step) >> 16)


@kernel
def classify(
    occupied: np.ndarray, columns: int, parameters: np.ndarray, scores: np.ndarray, classes: np.ndarray
) -> None:
    """Fill classes (cells,) uint8 with the class of each cell. occupied: (cells,) uint8, in rows of `columns` cells."""
    lag, column_weight, row_weight, left_weight, lag_weight, coarseness, start = parameters
    row_rate = np.int64(first_rate(start))
    rates = np.full(min(columns, occupied.size), row_rate)
    column, row, step = 0, 0, column_step(0)
    for i in range(occupied.size):
        rate = rates[np.uint64(column)]
        score = column_weight * score_of(rate, scores) + row_weight * score_of(row_rate, scores)
        score += neighbours_score(i, lag, left_weight, lag_weight, occupied)
        classes[i] = class_of(score, coarseness)
        here = np.int64(occupied[i])
        row_rate = moved(row_rate, ROW_STEP, here)
        rates[np.uint64(column)] = moved(rate, step, here)
        column += 1
        if column == columns:
            column = 0
            row += 1
            step = column_step(row)


@kernel
def tally(occupied: np.ndarray, classes: np.ndarray, counts: np.ndarray) -> None:
    """Add to counts (2, CLASSES) int64 the number of background [0] and occupied [1] cells by class."""
    for i in range(occupied.size):
        counts[np.uint64(occupied[i]), np.uint64(classes[i])] += 1


@kernel
def decode_positions(
    source: np.ndarray,
    columns: int,
    parameters: np.ndarray,
    scores: np.ndarray,
    divisors: np.ndarray,
    occupied: np.ndarray,
    positions: np.ndarray,
) -> tuple[int, int]:
    """Inverse of classify and collect_runs: fill occupied (cells,) uint8 and positions (cells,) int32.

    Returns:
        Index of the byte after the stream, or -1 if it is damaged, and the number of positions.
    """
    lag, column_weight, row_weight, left_weight, lag_weight, coarseness, start = parameters
    row_rate = np.int64(first_rate(start))
    rates = np.full(min(columns, occupied.size), row_rate)
    column, row, step = 0, 0, column_step(0)
    left = np.full(CLASSES, -1)  # remaining background cells of each class's run; -1: no run
    position, found = 0, 0
    for i in range(occupied.size):
        rate = rates[np.uint64(column)]
        score = column_weight * score_of(rate, scores) + row_weight * score_of(row_rate, scores)
        score += neighbours_score(i, lag, left_weight, lag_weight, occupied)
        kind = np.uint64(class_of(score, coarseness))
        remaining = left[kind]
        if remaining < 0:
            remaining, position = read_run(source, position, divisors[kind])
            if position < 0:
                return -1, 0
        left[kind] = remaining - 1
        here = np.int64(remaining == 0)
        occupied[i] = here
        positions[found] = i
        found += here
        row_rate = moved(row_rate, ROW_STEP, here)
        rates[np.uint64(column)] = moved(rate, step, here)
        column += 1
        if column == columns:
            column = 0
            row += 1
            step = column_step(row)
    if left.max() > 0:  # a run exceeds the block
        return -1, 0
    return finish(source, position), found
