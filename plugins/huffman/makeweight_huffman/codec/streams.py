"""Kernels for streams of bits: Huffman-coded symbols, and numbers of a fixed width.

Every stream begins at a byte and is filled up with zeros. A decoding kernel returns the byte after its stream, or -1
when the stream is damaged: it runs past `source`, the bytes of its block, or its unused bits are not zero. No kernel
reads outside `source`.
"""

# mypy: disable-error-code="assignment, arg-type, return-value"
# (In kernels, Python's and NumPy's integers are the same.)
from __future__ import annotations

import numpy as np

from makeweight_huffman.codec.codes import MAX_LENGTH
from makeweight_huffman.codec.compiled import kernel, load64, store32, store64

BITS_PER_ROUND = 4 * MAX_LENGTH  # four entries of the decoding table from one load: 48 of at least 57 bits
SYMBOLS_PER_ROUND = 12
SLACK = 8  # bytes that an encoding kernel may write after the end of its stream


@kernel
def flush(out: np.ndarray, at: int, word: np.uint64, count: np.uint64) -> tuple[int, np.uint64, np.uint64]:
    """Write the `count` low bits of a word to out from byte `at` on: where its last byte goes, if it is not yet full,
    that byte's bits, and their number.
    """
    store64(out, at, word)
    return at + np.int64(count >> np.uint64(3)), word >> (count & np.uint64(0x38)), count & np.uint64(7)


@kernel
def encode_symbols(symbols: np.ndarray, begin: int, end: int, codes: np.ndarray, out: np.ndarray, at: int) -> int:
    """Write symbols[begin:end] (uint8) to out from byte `at` on; returns the byte after them.

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
    """At least 57 bits from bit `position` on; zeros after the end of `source`."""
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
    """The byte after a stream that ended before bit `position`, or -1."""
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
    """Decode one stream from bit `position` on to out[begin:end] (uint8).

    entries, first: as codes.decoding_table returns them.
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
    """Decode four streams at once, each to its quarter of out (uint8). starts: (4,) int64, bytes.

    One stream's next load waits for its last; four of them keep the core busy.
    """
    window = np.uint64((1 << MAX_LENGTH) - 1)
    quarter = (out.size + 3) // 4
    i0, i1, i2, i3 = 0, quarter, 2 * quarter, 3 * quarter
    p0, p1, p2, p3 = 8 * starts[0], 8 * starts[1], 8 * starts[2], 8 * starts[3]
    while True:
        # How many rounds no check is needed for: room in each quarter, and bytes after the furthest stream.
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
    # A stream that does not end where the next begins is damaged.
    if decode_symbols(source, p0, starts[1], entries, first, out, i0, quarter) != starts[1]:
        return -1
    if decode_symbols(source, p1, starts[2], entries, first, out, i1, 2 * quarter) != starts[2]:
        return -1
    if decode_symbols(source, p2, starts[3], entries, first, out, i2, 3 * quarter) != starts[3]:
        return -1
    return decode_symbols(source, p3, source.size, entries, first, out, i3, out.size)


@kernel
def encode_numbers(words: np.ndarray, shift: int, width: int, out: np.ndarray, at: int) -> int:
    """Write `width` (1 to 32) bits of each word, from bit `shift` on; returns the byte after them."""
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    pending, count = np.uint64(0), np.uint64(0)
    for i in range(words.size):
        pending |= ((np.uint64(words[i]) >> np.uint64(shift)) & mask) << count
        count += np.uint64(width)
        at, pending, count = flush(out, at, pending, count)
    return at + np.int64(count > np.uint64(0))


@kernel
def decode_numbers(source: np.ndarray, at: int, shift: int, width: int, fresh: bool, words: np.ndarray) -> int:
    """Put `width` bits a word to bit `shift` of words; the other bits become zero where `fresh`, else they stay."""
    if words.size * width > 8 * (source.size - at):
        return -1
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    position = 8 * at
    fast = min(words.size, max(0, (8 * (source.size - 8) - position) // width))  # loads that stay within the source
    for i in range(fast):
        value = (load64(source, position >> 3) >> np.uint64(position & 7)) & mask
        words[i] = value << np.uint64(shift) if fresh else value << np.uint64(shift) | np.uint64(words[i])
        position += width
    for i in range(fast, words.size):
        value = peek(source, position) & mask
        words[i] = value << np.uint64(shift) if fresh else value << np.uint64(shift) | np.uint64(words[i])
        position += width
    return finish(source, position)
