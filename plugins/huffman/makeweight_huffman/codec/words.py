"""Kernels on words (elements as unsigned numbers): counting, codebook lookup, splitting off the background."""

# mypy: disable-error-code="assignment, arg-type, return-value"
# (Kernels mix Python and NumPy integers.)
from __future__ import annotations

import numpy as np

from makeweight_huffman.codec.compiled import kernel

LANES = 4
SLOTS = 1 << 14  # of the hash table: four per value of the largest codebook, so that probe sequences stay short


@kernel
def count_field(words: np.ndarray, shift: int, counts: np.ndarray) -> None:
    """Count the values of `width` bits from `shift` on. counts: (LANES, 2**width) int64, sum over the lanes.

    Lanes take turns, since two additions in a row to one counter would wait for each other.
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
    """Slot of a word: the slot that holds its index, or the empty slot (-1) for its insertion."""
    slot = np.int64((word * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(50))
    while slots[slot] >= 0 and keys[slots[slot]] != word:
        slot = (slot + 1) & (SLOTS - 1)
    return slot


@kernel
def count_distinct(words: np.ndarray, slots: np.ndarray, keys: np.ndarray, counts: np.ndarray, used: int) -> int:
    """Count each distinct word; returns their number including the `used` earlier ones, or -1 if `keys` is full.

    slots: (SLOTS,) int16, -1 if empty. keys: (values,) uint64. counts: (values,) int64.
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
    """Hash table (SLOTS,) int16 of the indices of the keys (values,), for look_up."""
    slots = np.full(SLOTS, -1, np.int16)
    for i in range(keys.size):
        slots[find_slot(keys[i], slots, keys)] = i
    return slots


@kernel
def look_up(words: np.ndarray, slots: np.ndarray, keys: np.ndarray, out: np.ndarray) -> None:
    """out[i] = index of words[i] in keys. Every word must be a key."""
    for i in range(words.size):
        out[i] = slots[find_slot(np.uint64(words[i]), slots, keys)]


@kernel
def split(words: np.ndarray, background: np.uint64, occupied: np.ndarray, positions: np.ndarray) -> int:
    """Find the words other than `background`: fills occupied (uint8) and positions (int32), returns their number."""
    found = 0
    for i in range(words.size):
        other = np.uint64(words[i]) != background
        occupied[i] = other
        positions[found] = i
        found += np.int64(other)
    return found


@kernel
def map_symbols(words: np.ndarray, shift: int, mask: int, inverse: np.ndarray, out: np.ndarray) -> None:
    """out[i] = inverse[field of words[i]], a symbol (uint8)."""
    for i in range(words.size):
        out[i] = inverse[(np.uint64(words[i]) >> np.uint64(shift)) & np.uint64(mask)]


@kernel
def unmap_symbols(symbols: np.ndarray, values: np.ndarray, fresh: bool, words: np.ndarray) -> None:
    """Set words[i] = values[symbols[i]] if `fresh`, else OR it into words[i]."""
    if fresh:
        for i in range(words.size):
            words[i] = values[symbols[i]]
    else:
        for i in range(words.size):
            words[i] |= values[symbols[i]]


@kernel
def gather(indices: np.ndarray, values: np.ndarray, out: np.ndarray) -> int:
    """out[i] = values[indices[i]], with indices clipped to the last value; returns the largest index."""
    largest = np.uint64(0)
    last = np.uint64(values.size - 1)
    for i in range(indices.size):
        index = np.uint64(indices[i])
        if index > largest:
            largest = index
        out[i] = values[index if index < last else last]
    return np.int64(largest)
