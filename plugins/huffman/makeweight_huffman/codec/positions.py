"""Where the elements other than the background stand: runs of background in classes of like density.

Cells are visited in their order. Each one's class is told by what has been visited: how often its column was occupied,
how often the cells just before were, whether the neighbours at distance 1 and `lag` are. Every class has its own runs
(the background cells between two occupied ones, counting this class only) in its own Golomb code, which is the Huffman
code of a geometric distribution. A run is written when its first cell is reached.

Source: Golomb, Run-length encodings, 1966; Gallager and Van Voorhis, Optimal source codes for geometrically distributed
integer alphabets, 1975.
"""

# mypy: disable-error-code="assignment, arg-type, return-value"
# (In kernels, Python's and NumPy's integers are the same.)
from __future__ import annotations

import math

import numpy as np

from makeweight_huffman.codec.compiled import kernel
from makeweight_huffman.codec.model import CLASSES
from makeweight_huffman.codec.runs import read_run
from makeweight_huffman.codec.streams import finish

OCTAVE = 8  # units of a score to a factor of two in density
DENSITY_BITS = 24  # of a density, a number below one
SCORE_BITS = 12  # of these, that decide its score; the table stays in a core's first cache
ROW_STEP = 65536 >> 7  # the cells before: a running mean over about 2**7 of them
COLUMN_START, COLUMN_ROWS = 5, 256  # a column's mean: as if 5 rows had come before; over about 256 rows later

# The score of a density by its first bits: OCTAVE * log2 of it, rounded to nearest; zero counts as one half.
SCORES = np.array([-OCTAVE] + [round(OCTAVE * math.log2(n)) for n in range(1, 1 << SCORE_BITS)], np.int64)
SCORES -= OCTAVE * SCORE_BITS


@kernel
def score_of(rate: int, scores: np.ndarray) -> int:
    """The score of a density."""
    return scores[np.uint64(rate) >> np.uint64(DENSITY_BITS - SCORE_BITS)]


@kernel
def neighbours_score(i: int, lag: int, left_weight: int, lag_weight: int, occupied: np.ndarray) -> int:
    """What the neighbours of cell i add to its score, occupied[:i] being known."""
    score = 0
    if i >= 1:
        score += left_weight * occupied[np.uint64(i - 1)]
    if i >= lag:
        score += lag_weight * occupied[np.uint64(i - lag)]
    return score * OCTAVE


@kernel
def class_of(score: int, coarseness: int) -> int:
    """The class of a cell: 0 where most are occupied, at most CLASSES - 1."""
    return min(max(-score >> coarseness, 0), CLASSES - 1)


@kernel
def first_rate(start: int) -> int:
    """The density that columns and rows begin with."""
    return min(1 << (DENSITY_BITS - start), (1 << DENSITY_BITS) - 1)


@kernel
def column_step(row: int) -> int:
    """By what part (of 2**16) a column's mean moves to each new cell of it."""
    return 65536 // min(COLUMN_START + row, COLUMN_ROWS)


@kernel
def moved(rate: int, step: int, here: int) -> int:
    """A running mean, moved by a part (of 2**16) towards the cell that came."""
    return rate + (((here * ((1 << DENSITY_BITS) - 1) - rate) * step) >> 16)


@kernel
def classify(
    occupied: np.ndarray, columns: int, parameters: np.ndarray, scores: np.ndarray, classes: np.ndarray
) -> None:
    """Fill classes (uint8) with the class of each cell of occupied (uint8), which has `columns` columns."""
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
    """Count the cells of each class that are free, and those that are occupied. counts: (2, CLASSES) int64."""
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
    """Undo classify and collect_runs: fill occupied (uint8) and positions (int32).

    Returns:
        The byte after the stream, or -1 when it is damaged, and the number of positions.
    """
    lag, column_weight, row_weight, left_weight, lag_weight, coarseness, start = parameters
    row_rate = np.int64(first_rate(start))
    rates = np.full(min(columns, occupied.size), row_rate)
    column, row, step = 0, 0, column_step(0)
    left = np.full(CLASSES, -1)  # background cells that remain of each class's run; -1: it has none yet
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
    if left.max() > 0:  # a run goes on behind the last cell
        return -1, 0
    return finish(source, position), found
