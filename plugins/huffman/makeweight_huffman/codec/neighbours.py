"""Kernels for symbols with three Huffman codes, selected by the signs of the words at distance 1 and `lag` before."""

# mypy: disable-error-code="assignment, arg-type, return-value"
# (Kernels mix Python and NumPy integers.)
from __future__ import annotations

import numpy as np

from makeweight_huffman.codec.codes import MAX_LENGTH
from makeweight_huffman.codec.compiled import kernel
from makeweight_huffman.codec.streams import finish, flush, peek

CONTEXTS = 3  # the sum of the two signs is negative, zero, or positive


@kernel
def context_of(cell: int, lag: int, signs: np.ndarray) -> int:
    """Context (index of the code) of a cell, from the signs of earlier cells: (cells,) int8, 0 for background."""
    total = np.int64(signs[cell - 1]) if cell >= 1 else 0
    if cell >= lag:
        total += np.int64(signs[cell - lag])
    return 1 + np.int64(total > 0) - np.int64(total < 0)


@kernel
def collect_contexts(
    symbols: np.ndarray, positions: np.ndarray, lag: int, sign_of: np.ndarray, signs: np.ndarray, contexts: np.ndarray
) -> None:
    """Fill contexts (symbols,) uint8 of the symbols (symbols,) uint8 at `positions` (symbols,).

    sign_of: (256,) int8, sign of each symbol's word. signs: (cells,) int8 scratch array, all zero on entry.
    """
    for i in range(symbols.size):
        contexts[i] = context_of(positions[i], lag, signs)
        signs[positions[i]] = sign_of[symbols[i]]


@kernel
def encode_in_context(symbols: np.ndarray, contexts: np.ndarray, codes: np.ndarray, out: np.ndarray, at: int) -> int:
    """Write symbols to out[at:] in the codes of their contexts, (CONTEXTS, 256) uint32; returns the byte after them."""
    word, count = np.uint64(0), np.uint64(0)
    for i in range(symbols.size):
        code = np.uint64(codes[contexts[i], symbols[i]])
        word |= (code & np.uint64(0xFFFF)) << count
        count += code >> np.uint64(16)
        at, word, count = flush(out, at, word, count)
    return at + np.int64(count > np.uint64(0))


@kernel
def decode_in_context(
    source: np.ndarray,
    at: int,
    entries: np.ndarray,
    first: np.ndarray,
    positions: np.ndarray,
    lag: int,
    sign_of: np.ndarray,
    signs: np.ndarray,
    out: np.ndarray,
) -> int:
    """Inverse of encode_in_context, into out (symbols,) uint8; returns the byte after the stream, or -1 if damaged.

    entries, first: (CONTEXTS, 2**MAX_LENGTH), from codes.decoding_table; all zeros for a code without symbols.
    """
    window = np.uint64((1 << MAX_LENGTH) - 1)
    position = 8 * at
    for i in range(out.size):
        if position > 8 * source.size:
            return -1
        context = context_of(positions[i], lag, signs)
        place = peek(source, position) & window
        length = np.int64(first[context, place])
        if length == 0:
            return -1
        symbol = np.uint8(entries[context, place] & np.uint32(0xFF))
        out[i] = symbol
        signs[positions[i]] = sign_of[symbol]
        position += length
    return finish(source, position)
