"""Huffman codes against the classic algorithm, and the number codes of headers."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makeweight_huffman.codec import codes, positions
from makeweight_huffman.codec.bits import BitReader, BitWriter, FormatError, read_varint, write_varint
from makeweight_huffman.codec.fields import read_ascending, write_ascending
from makeweight_huffman.codec.model import DIVISORS

unhurried = settings(deadline=None)  # a busy machine is not an error
histograms = st.lists(st.integers(0, 5000), min_size=2, max_size=256).filter(lambda counts: sum(map(bool, counts)) > 1)


def heap_total(counts: list[int]) -> int:
    """Bits of an optimal code without length limit: the sum of all inner nodes of Huffman's tree."""
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


@unhurried
@given(histograms)
def test_lengths_are_optimal_where_no_limit_binds(counts: list[int]) -> None:
    lengths = codes.code_lengths(np.array(counts), limit=40)
    assert (lengths.astype(int) * counts).sum() == heap_total(counts)


@unhurried
@given(histograms)
def test_limited_lengths_fill_krafts_sum_and_cost_little_more(counts: list[int]) -> None:
    lengths = codes.code_lengths(np.array(counts))
    used = lengths[lengths > 0].astype(int)
    assert used.max() <= codes.MAX_LENGTH
    assert (0.5**used).sum() == 1
    assert (lengths > 0).tolist() == [count > 0 for count in counts]
    total = int((lengths.astype(int) * counts).sum())
    assert total >= heap_total(counts)
    if heap_total(counts) < total:  # allowed only if the unlimited code exceeds the limit
        assert codes.code_lengths(np.array(counts), limit=40).max() > codes.MAX_LENGTH


def test_limited_lengths_of_fibonacci_counts_are_those_of_package_merge() -> None:
    counts = np.array([1, 1, 2, 3, 5, 8])  # the classic worst case: without a limit the lengths are 5 5 4 3 2 1
    assert sorted(codes.code_lengths(counts, limit=3).tolist()) == [2, 2, 3, 3, 3, 3]
    assert sorted(codes.code_lengths(counts, limit=5).tolist()) == [1, 2, 3, 4, 5, 5]


def test_canonical_codes_are_those_of_rfc_1951() -> None:
    lengths = np.array([3, 3, 3, 3, 3, 2, 4, 4], np.uint8)  # the RFC's example, section 3.2.2
    expected = ["010", "011", "100", "101", "110", "00", "1110", "1111"]
    for code, bits in zip(codes.canonical_codes(lengths).tolist(), expected, strict=True):
        assert (code >> 16, code & 0xFFFF) == (len(bits), int(bits[::-1], 2))


@unhurried
@given(histograms, st.integers(0, 2**12 - 1))
def test_decoding_table_agrees_with_reading_bit_by_bit(counts: list[int], window: int) -> None:
    lengths = codes.code_lengths(np.array(counts))
    entries, first = codes.decoding_table(lengths)
    by_bits = {
        (code >> 16, code & 0xFFFF): symbol for symbol, code in enumerate(codes.canonical_codes(lengths).tolist())
    }
    symbols: list[int] = []
    used = 0
    while len(symbols) < codes.SYMBOLS_PER_ENTRY:
        for length in range(1, 13 - used):
            symbol = by_bits.get((length, window >> used & ((1 << length) - 1)))
            if symbol is not None and lengths[symbol] == length:
                break
        else:
            break
        symbols.append(symbol)
        used += length
    entry = int(entries[window])
    assert first[window] == lengths[symbols[0]]
    assert (entry >> 28, entry >> 24 & 15) == (len(symbols), used)
    assert [entry >> 8 * place & 0xFF for place in range(len(symbols))] == symbols


@unhurried
@given(histograms)
def test_code_lengths_come_back(counts: list[int]) -> None:
    lengths = codes.code_lengths(np.array(counts))
    writer = BitWriter()
    codes.write_lengths(writer, lengths)
    assert codes.read_lengths(BitReader(memoryview(writer.to_bytes())), len(counts)).tolist() == lengths.tolist()


@pytest.mark.parametrize("lengths", [[1, 2], [1, 1, 1], [2, 2, 2], [1, 2, 3, 4]])
def test_incomplete_codes_are_refused(lengths: list[int]) -> None:
    writer = BitWriter()
    codes.write_lengths(writer, np.array(lengths, np.uint8))
    with pytest.raises(FormatError, match="Kraft"):
        codes.read_lengths(BitReader(memoryview(writer.to_bytes())), len(lengths))


@unhurried
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 63))), st.integers(-(2**40), 2**40))
def test_numbers_of_headers_come_back(numbers: list[tuple[int, int]], last: int) -> None:
    writer = BitWriter()
    for value, order in numbers:
        writer.exp_golomb(value, order)
    writer.signed(last)
    reader = BitReader(memoryview(writer.to_bytes()))
    assert [reader.exp_golomb(order) for _, order in numbers] == [value for value, _ in numbers]
    assert reader.signed() == last
    assert reader.end() == len(writer.to_bytes())


@unhurried
@given(st.integers(0, 2**63 - 1))
def test_varints_come_back_and_longer_ones_are_refused(value: int) -> None:
    written = write_varint(value)
    assert read_varint(memoryview(written), 0) == (value, len(written))
    with pytest.raises(FormatError):
        read_varint(memoryview(written[:-1] + bytes([written[-1] | 0x80, 0])), 0)


@unhurried
@given(st.sets(st.integers(0, 2**32 - 1), min_size=1, max_size=100))
def test_ascending_values_come_back(values: set[int]) -> None:
    writer = BitWriter()
    write_ascending(writer, np.array(sorted(values), np.uint64), 32)
    read = read_ascending(BitReader(memoryview(writer.to_bytes())), len(values), 32)
    assert read.tolist() == sorted(values)


def test_golomb_divisors_ascend_by_at_most_a_quarter_after_four() -> None:
    divisors = DIVISORS[1:]
    assert divisors[:8].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert np.all(np.diff(divisors) > 0)
    assert np.all(divisors[4:] <= 1.25 * divisors[3:-1])


def test_scores_do_not_depend_on_how_a_machine_rounds() -> None:
    exact = positions.OCTAVE * np.log2(np.arange(1, 1 << positions.SCORE_BITS))
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-6  # no logarithm is near a rounding boundary
