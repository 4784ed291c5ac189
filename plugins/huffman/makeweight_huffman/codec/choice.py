"""The encoder's choice of a plan: the one under which a tensor takes the fewest bits."""

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

SMALL = 1 << 18  # words up to which all plans are tried out; of larger tensors the plan is chosen by estimates
SPARSE_SHARE = 0.25  # of the words that must be alike before leaving them out is tried


def candidate_plans(tensor: Words, columns: int, sign_and_exponent: int) -> list[Plan]:
    """The plans worth trying for a tensor (words,): several for a small one, else the one that should be shortest.

    Args:
        tensor: one word or more.
        columns: the words in a row.
        sign_and_exponent: the bits of a float's word before its mantissa; 0 where words are integers.
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
    """Ways to write the words, background apart, and their bits: as such, and by their numbers in a codebook."""
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
    """A plan with what the positions need, in classes or not; both where `several` may be returned."""
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
    """Classes without a divisor may occur in another block: they take after the classes around them. (CLASSES,)."""
    used = np.flatnonzero(divisors)
    if not len(used):
        return np.ones_like(divisors)
    return np.rint(np.interp(np.arange(len(divisors)), used, divisors[used])).astype(np.int64)


def fields_in_context(plan: Plan, tensor: Words, columns: int) -> tuple[Field, ...]:
    """The plan's fields, the only one of them with a code for each sign of its neighbours where that pays."""
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
    """The counts, a second symbol added where there is but one: a code in context has none or at least two."""
    counts = counts.copy()
    if np.count_nonzero(counts) == 1:
        counts[0 if counts[0] == 0 else 1] = 1
    return counts
