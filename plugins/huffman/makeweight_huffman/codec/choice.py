"""Chooses a tensor's plan: the representation with the fewest bits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec import codes, search
from makeweight_huffman.codec.bits import BitWriter
from makeweight_huffman.codec.body import BodyCoder
from makeweight_huffman.codec.coder import Words
from makeweight_huffman.codec.cut import header_bits, index_fields, word_fields
from makeweight_huffman.codec.fields import Field, write_ascending
from makeweight_huffman.codec.model import CLASSES
from makeweight_huffman.codec.plan import SPARSE_BLOCK, Plan, Sparse
from makeweight_huffman.codec.statistics import Statistics

SMALL = 1 << 18  # words; up to here several plans are encoded, above the plan is chosen by estimates
SPARSE_SHARE = 0.25  # smallest fraction of equal words for which a sparse representation is tried


def candidate_plans(tensor: Words, columns: int, sign_and_exponent: int) -> list[Plan]:
    """Plans to try for a tensor (words,): several for a small tensor, otherwise the one with the best estimate.

    Args:
        tensor: at least one word.
        columns: number of words in a row.
        sign_and_exponent: bits above the mantissa in a float's word; 0 for integers.
    """
    statistics = Statistics.of(tensor)
    small = tensor.size <= SMALL
    dense = value_plans(statistics, sign_and_exponent)
    background, count = statistics.most_frequent()
    sparse: list[tuple[float, Plan]] = []
    if SPARSE_SHARE * tensor.size <= count < tensor.size:
        share = count / tensor.size
        place_bits = -tensor.size * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
        values = value_plans(statistics.without(background, count), sign_and_exponent)
        left_out = Sparse(background, None, np.zeros(CLASSES, np.int64))
        sparse = [(place_bits + bits, replace(plan, sparse=left_out)) for bits, plan in values]
    chosen = [dense, sparse] if small else [[min(dense + sparse, key=lambda way: way[0])]]
    plans = [min(ways, key=lambda way: way[0])[1] for ways in chosen if ways]
    return [final for plan in plans for final in finished(plan, tensor, columns, small)]


def value_plans(statistics: Statistics, sign_and_exponent: int) -> list[tuple[float, Plan]]:
    """(estimated bits, plan) for the words without background: cut into fields, or as indices into a codebook."""
    width, trailing = statistics.width, statistics.trailing
    bits, fields = word_fields(statistics, sign_and_exponent)
    plans = [(bits, Plan(width, trailing, None, None, fields))]
    if statistics.distinct is not None and statistics.counts is not None and len(statistics.distinct):
        bits, fields = index_fields(statistics.counts)
        header = BitWriter()
        write_ascending(header, statistics.distinct >> np.uint64(trailing), width - trailing)
        plans.append((bits + len(header), Plan(width, trailing, None, statistics.distinct, fields)))
    return plans


def finished(plan: Plan, tensor: Words, columns: int, several: bool) -> list[Plan]:
    """Complete a plan with the coding of positions: one class, or classes of a model; both if `several`."""
    if plan.sparse is None:
        return [plan]
    sample = search.spread(tensor, columns, SPARSE_BLOCK)
    occupied = (sample != plan.sparse.background).astype(np.uint8)
    model = search.best_model(occupied, columns)
    finals = []
    for choice in [None, model] if model and several else [model]:
        divisors = search.best_divisors(occupied, columns, choice)
        if tensor.size > sample.size:
            divisors = filled(divisors)
        final = replace(plan, sparse=Sparse(plan.sparse.background, choice, divisors))
        finals.append(replace(final, fields=fields_in_context(final, tensor, columns)))
    return finals


def filled(divisors: NDArray[np.int64]) -> NDArray[np.int64]:
    """Interpolate missing divisors (CLASSES,), since classes that the sample lacks can occur in another block."""
    used = np.flatnonzero(divisors)
    if not len(used):
        return np.ones_like(divisors)
    return np.rint(np.interp(np.arange(len(divisors)), used, divisors[used])).astype(np.int64)


def fields_in_context(plan: Plan, tensor: Words, columns: int) -> tuple[Field, ...]:
    """The plan's fields; a single field gets one code per context of neighbours' signs if that saves bits."""
    if not plan.has_contexts:
        return plan.fields
    field = plan.fields[0]
    if field.lengths is None or field.lengths.shape[1] < 2:
        return plan.fields
    counts = BodyCoder(plan, tensor.size, columns).count_contexts(tensor)  # (CONTEXTS, symbols)
    lengths = np.stack([codes.code_lengths(usable(row)) for row in counts])
    in_context = replace(field, lengths=lengths)
    saved = (counts * field.lengths).sum() - (counts * lengths).sum()
    return (in_context,) if saved > header_bits(in_context) - header_bits(field) else plan.fields


def usable(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts with a second symbol added to a single one: a code in context has no symbol, or at least two."""
    counts = counts.copy()
    if np.count_nonzero(counts) == 1:
        counts[0 if counts[0] == 0 else 1] = 1
    return counts
