"""The encoder's search for a model of the positions, by coordinate descent on a sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec import positions, runs
from makeweight_huffman.codec.model import CLASSES, DIVISORS, Model

SAMPLE = 1 << 18  # cells
PIECES = 4  # pieces of a sample, spread over the tensor, which may vary along its length
FARTHEST_LAG = 128
STEPS = {"column_weight": 31, "row_weight": 31, "left_weight": 63, "lag_weight": 63, "coarseness": 15}
HEADER_BITS = 45  # of a model without its classes
CLASS_BITS = 4.0  # per class, in the header and for its last run


def entropy(ones: NDArray[np.int64], total: NDArray[np.int64]) -> float:
    """Entropy in bits, summed over classes. ones, total: (classes,), occupied cells and all cells."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = ones * np.log2(total / ones) + (total - ones) * np.log2(total / (total - ones))
    return float(np.nansum(bits))


def best_model(occupied: NDArray[np.uint8], columns: int) -> Model | None:
    """Model with the lowest estimated cost for occupied (cells,), or None if a single class is as good.

    Coordinate descent: each parameter is moved while that lowers the cost.
    """
    occupied = spread(occupied, columns, SAMPLE)
    ones = int(occupied.sum())
    if ones in (0, occupied.size):
        return None
    start = min(15, max(0, round(-np.log2(ones / occupied.size))))
    models = [Model(lag=lag, start=start) for lag in likely_lags(occupied)]
    costs = [model_cost(model, occupied, columns) for model in models]
    cost, model = min(zip(costs, models, strict=True), key=lambda pair: pair[0])
    for stride in (4, 4, 1, 1):
        for name, largest in STEPS.items():
            for step in (stride, -stride) if name != "coarseness" else (1, -1):
                while 0 <= getattr(model, name) + step <= largest:
                    trial = replace(model, **{name: getattr(model, name) + step})
                    trial_cost = model_cost(trial, occupied, columns)
                    if trial_cost >= cost:
                        break
                    cost, model = trial_cost, trial
    alone = entropy(np.array([ones]), np.array([occupied.size]))
    return model if cost + HEADER_BITS < alone else None


def spread(cells: NDArray[Any], columns: int, size: int) -> NDArray[Any]:
    """About `size` cells in PIECES pieces, which start at a row if rows are short enough; all cells if no more."""
    if cells.size <= size:
        return cells
    piece = size // PIECES
    begins = [(cells.size - piece) * number // (PIECES - 1) for number in range(PIECES)]
    if columns <= piece:
        begins = [begin - begin % columns for begin in begins]
        piece -= piece % columns
    return np.concatenate([cells[begin : begin + piece] for begin in begins])


def likely_lags(occupied: NDArray[np.uint8]) -> list[int]:
    """The (at most two) distances at which occupied cells most often have an occupied neighbour."""
    together = [
        (int((occupied[lag:] & occupied[:-lag]).sum()), -lag)
        for lag in range(2, min(FARTHEST_LAG, occupied.size - 1) + 1)
    ]
    return [-lag for _, lag in sorted(together, reverse=True)[:2]] or [1]


def model_cost(model: Model, occupied: NDArray[np.uint8], columns: int) -> float:
    """Estimated bits of the cells under a model: the entropy by class, and CLASS_BITS per class."""
    classes = np.empty(occupied.size, np.uint8)
    positions.classify(occupied, columns, model.parameters(), positions.SCORES, classes)
    counts = np.zeros((2, CLASSES), np.int64)
    positions.tally(occupied, classes, counts)
    total = counts.sum(axis=0)
    return entropy(counts[1], total) + CLASS_BITS * float(np.ptp(np.flatnonzero(total)) + 1)


def best_divisors(occupied: NDArray[np.uint8], columns: int, model: Model | None) -> NDArray[np.int64]:
    """Indices (CLASSES,) of the best divisor of each class, 0 for a class without runs.

    Without a model only class 0 has runs.
    """
    lengths = np.empty(occupied.size + CLASSES, np.int32)
    kinds = np.zeros(lengths.size, np.uint8)
    if model is None:
        used = runs.collect_gaps(np.flatnonzero(occupied).astype(np.int32), occupied.size, lengths)
    else:
        classes = np.empty(occupied.size, np.uint8)
        positions.classify(occupied, columns, model.parameters(), positions.SCORES, classes)
        used = runs.collect_runs(occupied, classes, lengths, kinds)
    costs = np.zeros((CLASSES, len(DIVISORS)), np.int64)
    runs.cost_runs(lengths[:used], kinds[:used], DIVISORS, costs)
    return np.where(costs[:, 1:].any(axis=1), costs[:, 1:].argmin(axis=1) + 1, 0)
