"""Kernels for runs of background cells in Golomb code."""

# mypy: disable-error-code="assignment, arg-type, return-value"
# (Kernels mix Python and NumPy integers.)
from __future__ import annotations

import numpy as np

from makeweight_huffman.codec.compiled import kernel
from makeweight_huffman.codec.streams import finish, flush, peek

ONES = 32  # most bits of a unary quotient written at once


@kernel
def remainder_bits(divisor: int) -> int:
    """Bits of the longest remainder, ceil(log2(divisor))."""
    bits = 0
    while 1 << bits < divisor:
        bits += 1
    return bits


@kernel
def collect_runs(occupied: np.ndarray, classes: np.ndarray, runs: np.ndarray, kinds: np.ndarray) -> int:
    """Fill runs (int32) and their classes `kinds` (uint8) in the order of decoding; returns the number of runs."""
    current = np.full(256, -1)
    used = 0
    for i in range(occupied.size):
        kind = classes[i]
        if current[kind] < 0:
            current[kind] = used
            runs[used], kinds[used] = 0, kind
            used += 1
        if occupied[i]:
            current[kind] = -1
        else:
            runs[current[kind]] += 1
    return used


@kernel
def collect_gaps(positions: np.ndarray, cells: int, runs: np.ndarray) -> int:
    """collect_runs for a single class, from the positions of the occupied cells."""
    begin = 0
    for i in range(positions.size):
        runs[i] = positions[i] - begin
        begin = positions[i] + 1
    if begin == cells:
        return positions.size
    runs[positions.size] = cells - begin
    return positions.size + 1


@kernel
def cost_runs(runs: np.ndarray, kinds: np.ndarray, divisors: np.ndarray, costs: np.ndarray) -> None:
    """Add to costs (classes, divisors) int64 the bits of each class's runs under each divisor except index 0."""
    for number in range(1, divisors.size):
        divisor = divisors[number]
        bits = remainder_bits(divisor)
        short = (1 << bits) - divisor
        for i in range(runs.size):
            quotient = runs[i] // divisor
            remainder = runs[i] - quotient * divisor
            costs[kinds[i], number] += quotient + 1 + bits - np.int64(remainder < short and divisor > 1)


@kernel
def write_runs(runs: np.ndarray, kinds: np.ndarray, divisors: np.ndarray, out: np.ndarray, at: int) -> int:
    """Write each run to out[at:] in the Golomb code of its class; returns the byte after them.

    The quotient is in unary (ones, then a zero), the remainder in truncated binary. `out` needs 8 spare bytes.
    """
    word, count = np.uint64(0), np.uint64(0)
    for i in range(runs.size):
        divisor = divisors[kinds[i]]
        quotient = runs[i] // divisor
        remainder = runs[i] - quotient * divisor
        bits = remainder_bits(divisor)
        short = (1 << bits) - divisor
        while quotient >= 0:
            ones = min(quotient, ONES)
            word |= np.uint64((1 << ones) - 1) << count
            count += np.uint64(ones + np.int64(quotient < ONES))
            quotient = quotient - ONES if quotient >= ONES else -1
            at, word, count = flush(out, at, word, count)
        if divisor > 1:
            if remainder < short:
                word |= np.uint64(remainder) << count
                count += np.uint64(bits - 1)
            else:
                remainder += short
                word |= np.uint64((remainder >> 1) | ((remainder & 1) << (bits - 1))) << count
                count += np.uint64(bits)
        at, word, count = flush(out, at, word, count)
    return at + np.int64(count > np.uint64(0))


@kernel
def read_run(source: np.ndarray, position: int, divisor: int) -> tuple[int, int]:
    """Read the run at bit `position`: its length, and the bit after it, or -1 if damaged or the divisor is 0."""
    if divisor == 0:
        return 0, -1
    quotient = 0
    word = peek(source, position)
    available = 57
    while word & np.uint64(1):
        quotient += 1
        position += 1
        word >>= np.uint64(1)
        available -= 1
        if available < 24:  # a remainder has at most 21 bits
            if position > 8 * source.size:
                return 0, -1
            word = peek(source, position)
            available = 57
    position += 1
    word >>= np.uint64(1)
    run = quotient * divisor
    if divisor > 1:
        bits = remainder_bits(divisor)
        short = (1 << bits) - divisor
        head = np.int64(word & ((np.uint64(1) << np.uint64(bits - 1)) - np.uint64(1)))
        position += bits - 1
        if head < short:
            run += head
        else:
            run += 2 * head + np.int64((word >> np.uint64(bits - 1)) & np.uint64(1)) - short
            position += 1
    return (run, position) if position <= 8 * source.size else (run, -1)


@kernel
def decode_gaps(source: np.ndarray, divisor: int, cells: int, positions: np.ndarray) -> tuple[int, int]:
    """Inverse of collect_gaps and write_runs: fill positions (cells,) int32.

    Returns:
        Index of the byte after the stream, or -1 if it is damaged, and the number of positions.
    """
    position, found, i = 0, 0, 0
    while i < cells:
        run, position = read_run(source, position, divisor)
        if position < 0 or run > cells - i:
            return -1, 0
        i += run
        if i < cells:
            positions[found] = i
            found += 1
            i += 1
    return finish(source, position), found
