"""Kernels for bit streams: Huffman-coded symbols, and numbers of a fixed width.

Every stream begins at a byte and is padded with zero bits. A decoding kernel returns the index of the byte after its
stream, or -1 if the stream is damaged: it exceeds `source` (the bytes of its block), or its unused bits are not zero.
No kernel reads outside `source`.
"""

# mypy: disable-error-code="assignment, arg-type, return-value"
# (Kernels mix Python and NumPy integers.)
from __future__ import annotations

import numpy as np

from makeweight_huffman.codec.codes import MAX_LENGTH
from makeweight_huffman.codec.compiled import kernel, load64, store32, store64

BITS_PER_ROUND = 4 * MAX_LENGTH  # four table lookups per 64-bit load, which gives at least 57 bits
SYMBOLS_PER_ROUND = 12
SLACK = 8  # bytes that an encoding kernel may write beyond its stream


@kernel
def flush(out: np.ndarray, at: int, word: np.uint64, count: np.uint64) -> tuple[int, np.uint64, np.uint64]:
    """Write the `count` low bits of `word` to out[at:].

    Returns the index of the first incomplete byte, its pending bits, and their number.
    """
    store64(out, at, word)
    return at + np.int64(count >> np.uint64(3)), word >> (count & np.uint64(0x38)), count & np.uint64(7)


@kernel
def encode_symbols(symbols: np.ndarray, begin: int, end: int, codes: np.ndarray, out: np.ndarray, at: int) -> int:
    """Write symbols[begin:end] (uint8) to out[at:]; returns the byte after them.

    codes: (256,) uint32, code | length << 16. `out` must hold the stream and SLACK bytes.
    """
    low = np.uint64(0xFFFF)
    word, count = np.uint64(0), np.uint64(0)
    whole = begin + (end - begin) // 4 * 4
    for i in range(begin, whole, 4):  # at most 7 + 4 * MAX_LENGTH bits between two stores
        c0, c1 = np.uint64(codes[symbols[i]]), np.uint64(codes[symbols[i + 1]])
        c2, c3 = np.uint64(codes[symbols[i + 2]]), np.uint64(codes[symbols[i + 3]])
        l0, l2 = c0 >> np.uint64(16), c2 >> np.uint64(16)
        first, second = c0 & low | (c1 & low) << l0, c2 & low | (c3 & low) << l2
        l0 += c1 >> np.uint64(16)
        l2 += c3 >> np.uint64(16)
        word |= (first | second << l0) << count
        count += l0 + l2
        at, word, count = flush(out, at, word, count)
    for i in range(whole, end):
        code = np.uint64(codes[symbols[i]])
        word |= (code & low) << count
        count += code >> np.uint64(16)
    store64(out, at, word)
    return at + np.int64((count + np.uint64(7)) >> np.uint64(3))


@kernel
def peek(source: np.ndarray, position: int) -> np.uint64:
    """At least 57 bits from bit `position` on; zeros beyond the end of `source`."""
    first = position >> 3
    word = np.uint64(0)
    if first + 8 <= source.size:
        word = load64(source, first)
    else:
        for i in range(first, source.size):
            word |= np.uint64(source[i]) << np.uint64(8 * (i - first))
    return word >> np.uint64(position & 7)


@kernel
def finish(source: np.ndarray, position: int) -> int:
    """Index of the byte after a stream that ends at bit `position`, or -1 if it is damaged."""
    end = (position + 7) >> 3
    if end > source.size or (position & 7 and source[end - 1] >> np.uint8(position & 7)):
        return -1
    return end


@kernel
def decode_symbols(
    source: np.ndarray,
    position: int,
    limit: int,
    entries: np.ndarray,
    first: np.ndarray,
    out: np.ndarray,
    begin: int,
    end: int,
) -> int:
    """Decode one stream from bit `position` on, not beyond byte `limit`, into out[begin:end] (uint8).

    entries, first: from codes.decoding_table.
    """
    window = np.uint64((1 << MAX_LENGTH) - 1)
    i = begin
    while end - i >= SYMBOLS_PER_ROUND + 1 and (position >> 3) + 8 <= source.size:
        word = load64(source, position >> 3) >> np.uint64(position & 7)
        for _ in range(4):
            entry = entries[word & window]
            store32(out, i, entry)
            bits = np.uint64((entry >> np.uint32(24)) & np.uint32(15))
            i += np.int64(entry >> np.uint32(28))
            position += np.int64(bits)
            word >>= bits
    while i < end:
        if position > 8 * limit:
            return -1
        place = peek(source, position) & window
        out[i] = np.uint8(entries[place] & np.uint32(0xFF))
        position += np.int64(first[place])
        i += 1
    return finish(source, position)


@kernel
def decode_four(source: np.ndarray, starts: np.ndarray, entries: np.ndarray, first: np.ndarray, out: np.ndarray) -> int:
    """Decode four streams at once, each into its quarter of out (uint8). starts: (4,) int64, first bytes.

    Within one stream every load depends on the previous lookup; four streams hide this latency.
    """
    window = np.uint64((1 << MAX_LENGTH) - 1)
    quarter = (out.size + 3) // 4
    i0, i1, i2, i3 = 0, quarter, 2 * quarter, 3 * quarter
    p0, p1, p2, p3 = 8 * starts[0], 8 * starts[1], 8 * starts[2], 8 * starts[3]
    while True:
        # Rounds that need no check: limited by the room in each quarter, and by the bytes after the furthest stream.
        room = min(min(quarter - i0, 2 * quarter - i1), min(3 * quarter - i2, out.size - i3)) - 1
        rounds = min(
            room // SYMBOLS_PER_ROUND, (8 * (source.size - 8) - max(max(p0, p1), max(p2, p3))) // BITS_PER_ROUND
        )
        if rounds < 1:
            break
        for _ in range(rounds):
            w0 = load64(source, p0 >> 3) >> np.uint64(p0 & 7)
            w1 = load64(source, p1 >> 3) >> np.uint64(p1 & 7)
            w2 = load64(source, p2 >> 3) >> np.uint64(p2 & 7)
            w3 = load64(source, p3 >> 3) >> np.uint64(p3 & 7)
            for _ in range(4):
                e0, e1 = entries[w0 & window], entries[w1 & window]
                e2, e3 = entries[w2 & window], entries[w3 & window]
                store32(out, i0, e0)
                store32(out, i1, e1)
                store32(out, i2, e2)
                store32(out, i3, e3)
                b0 = np.uint64((e0 >> np.uint32(24)) & np.uint32(15))
                b1 = np.uint64((e1 >> np.uint32(24)) & np.uint32(15))
                b2 = np.uint64((e2 >> np.uint32(24)) & np.uint32(15))
                b3 = np.uint64((e3 >> np.uint32(24)) & np.uint32(15))
                i0 += np.int64(e0 >> np.uint32(28))
                i1 += np.int64(e1 >> np.uint32(28))
                i2 += np.int64(e2 >> np.uint32(28))
                i3 += np.int64(e3 >> np.uint32(28))
                p0 += np.int64(b0)
                p1 += np.int64(b1)
                p2 += np.int64(b2)
                p3 += np.int64(b3)
                w0 >>= b0
                w1 >>= b1
                w2 >>= b2
                w3 >>= b3
    # A stream is damaged unless it ends where the next one begins.
    if decode_symbols(source, p0, starts[1], entries, first, out, i0, quarter) != starts[1]:
        return -1
    if decode_symbols(source, p1, starts[2], entries, first, out, i1, 2 * quarter) != starts[2]:
        return -1
    if decode_symbols(source, p2, starts[3], entries, first, out, i2, 3 * quarter) != starts[3]:
        return -1
    return decode_symbols(source, p3, source.size, entries, first, out, i3, out.size)


@kernel
def encode_numbers(words: np.ndarray, shift: int, width: int, out: np.ndarray, at: int) -> int:
    """Write `width` (1 to 32) bits of each word from its bit `shift` on to out[at:]; returns the byte after them."""
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    pending, count = np.uint64(0), np.uint64(0)
    for i in range(words.size):
        pending |= ((np.uint64(words[i]) >> np.uint64(shift)) & mask) << count
        count += np.uint64(width)
        at, pending, count = flush(out, at, pending, count)
    return at + np.int64(count > np.uint64(0))


@kernel
def decode_numbers(source: np.ndarray, at: int, shift: int, width: int, fresh: bool, words: np.ndarray) -> int:
    """Read `width` bits per word into the words at bit `shift`; clear their other bits if `fresh`, else keep them."""
    if words.size * width > 8 * (source.size - at):
        return -1
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    position = 8 * at
    fast = min(words.size, max(0, (8 * (source.size - 8) - position) // width))  # 64-bit loads within the source
    for i in range(fast):
        value = (load64(source, position >> 3) >> np.uint64(position & 7)) & mask
        words[i] = value << np.uint64(shift) if fresh else value << np.uint64(shift) | np.uint64(words[i])
        position += width
    for i in range(fast, words.size):
        value = peek(source, position) & mask
        words[i] = value << np.uint64(shift) if fresh else value << np.uint64(shift) | np.uint64(words[i])
        position += width
    return finish(source, position)
