"""Kernels on elements as unsigned numbers ("words"): counting, looking up, splitting off the background."""

# mypy: disable-error-code="assignment, arg-type, return-value"
# (In kernels, Python's and NumPy's integers are the same.)
from __future__ import annotations

import numpy as np

from makeweight_huffman.codec.compiled import kernel

LANES = 4
SLOTS = 1 << 14  # of the hash table; four to each of the values of the largest codebook, so that probes stay short


@kernel
def count_field(words: np.ndarray, shift: int, counts: np.ndarray) -> None:
    """Add up how often each value of the bits from `shift` on occurs. counts: (LANES, 2**width) int64.

    Lanes take turns, since adding twice to one counter makes the second wait for the first.
    """
    mask = np.uint64(counts.shape[1] - 1)
    whole = words.size - words.size % LANES
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            counts[lane, (np.uint64(words[i + lane]) >> np.uint64(shift)) & mask] += 1
    for i in range(whole, words.size):
        counts[0, (np.uint64(words[i]) >> np.uint64(shift)) & mask] += 1


@kernel
def find_slot(word: np.uint64, slots: np.ndarray, keys: np.ndarray) -> int:
    """The slot of a word: the one that holds its index, or the empty one (-1) where it would go."""
    slot = np.int64((word * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(50))
    while slots[slot] >= 0 and keys[slots[slot]] != word:
        slot = (slot + 1) & (SLOTS - 1)
    return slot


@kernel
def count_distinct(words: np.ndarray, slots: np.ndarray, keys: np.ndarray, counts: np.ndarray, used: int) -> int:
    """Count each distinct word; returns how many there are now, or -1 as soon as there are more than fit.

    slots: (SLOTS,) int16, -1 where empty. keys: (values,) uint64. counts: (values,) int64.
    """
    for i in range(words.size):
        word = np.uint64(words[i])
        slot = find_slot(word, slots, keys)
        if slots[slot] < 0:
            if used == keys.size:
                return -1
            slots[slot] = used
            keys[used] = word
            used += 1
        counts[slots[slot]] += 1
    return used


@kernel
def slots_of(keys: np.ndarray) -> np.ndarray:
    """The table (SLOTS,) in which look_up finds each key's number."""
    slots = np.full(SLOTS, -1, np.int16)
    for i in range(keys.size):
        slots[find_slot(keys[i], slots, keys)] = i
    return slots


@kernel
def look_up(words: np.ndarray, slots: np.ndarray, keys: np.ndarray, out: np.ndarray) -> None:
    """out[i] = the number of words[i] among the keys, where it must be."""
    for i in range(words.size):
        out[i] = slots[find_slot(np.uint64(words[i]), slots, keys)]


@kernel
def split(words: np.ndarray, background: np.uint64, occupied: np.ndarray, positions: np.ndarray) -> int:
    """Find the words other than `background`: sets occupied (uint8), fills positions (int32), returns their number."""
    found = 0
    for i in range(words.size):
        other = np.uint64(words[i]) != background
        occupied[i] = other
        positions[found] = i
        found += np.int64(other)
    return found


@kernel
def map_symbols(words: np.ndarray, shift: int, mask: int, inverse: np.ndarray, out: np.ndarray) -> None:
    """out[i] = inverse[the field of words[i]], a symbol (uint8)."""
    for i in range(words.size):
        out[i] = inverse[(np.uint64(words[i]) >> np.uint64(shift)) & np.uint64(mask)]


@kernel
def unmap_symbols(symbols: np.ndarray, values: np.ndarray, fresh: bool, words: np.ndarray) -> None:
    """Put values[symbols[i]] into words[i]: alone where `fresh`, else beside the bits that are there."""
    if fresh:
        for i in range(words.size):
            words[i] = values[symbols[i]]
    else:
        for i in range(words.size):
            words[i] |= values[symbols[i]]


@kernel
def gather(indices: np.ndarray, values: np.ndarray, out: np.ndarray) -> int:
    """out[i] = values[indices[i]], or the last value where there are fewer; returns the largest index."""
    largest = np.uint64(0)
    last = np.uint64(values.size - 1)
    for i in range(indices.size):
        index = np.uint64(indices[i])
        if index > largest:
            largest = index
        out[i] = values[index if index < last else last]
    return np.int64(largest)
