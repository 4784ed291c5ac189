"""Canonical, length-limited Huffman codes: counts to lengths, lengths to codes and decoding tables."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec.bits import BitReader, BitWriter, FormatError

MAX_LENGTH = 12  # bits; the decoding table of 2**12 four-byte entries fits the L1 cache
ALPHABET = 256  # largest alphabet: symbols are bytes
SYMBOLS_PER_ENTRY = 3  # most symbols that one lookup in the decoding table gives


def code_lengths(counts: NDArray[np.int64], limit: int = MAX_LENGTH) -> NDArray[np.uint8]:
    """Lengths in bits (symbols,) of an optimal prefix code with at most `limit` bits, from counts (symbols,).

    Symbols that do not occur have length 0, and so has a symbol that is the only one: it costs nothing.
    Source: Larmore and Hirschberg, A fast algorithm for optimal length-limited Huffman codes, 1990 (package-merge).
    """
    present = np.flatnonzero(counts)
    lengths = np.zeros(len(counts), np.uint8)
    if len(present) < 2:
        return lengths
    assert len(present) <= 1 << limit, f"{len(present)} symbols do not fit codes of {limit} bits"
    leaves: list[tuple[int, tuple[int, ...]]] = sorted((int(counts[symbol]), (symbol,)) for symbol in present.tolist())
    packages = leaves
    for _ in range(limit - 1):
        pairs = zip(packages[0::2], packages[1::2], strict=False)
        merged = [(left[0] + right[0], left[1] + right[1]) for left, right in pairs]
        packages = sorted(leaves + merged, key=lambda package: package[0])
    for _, members in packages[: 2 * len(leaves) - 2]:
        np.add.at(lengths, list(members), 1)
    return lengths


def canonical_codes(lengths: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Codes as code | length << 16, (symbols,), from lengths (symbols,); a code's first bit is its lowest.

    Codes ascend by (length, symbol) as in RFC 1951, section 3.2.2; their bits are reversed, since streams are read from
    the lowest bit.
    """
    codes = np.zeros(len(lengths), np.uint32)
    code, previous = 0, 0
    for symbol in _canonical_order(lengths):
        length = int(lengths[symbol])
        code <<= length - previous
        codes[symbol] = int(f"{code:0{length}b}"[::-1], 2) | length << 16
        code, previous = code + 1, length
    return codes


def is_complete(lengths: NDArray[np.uint8]) -> bool:
    """Whether Kraft's sum of the lengths is exactly 1, so that every bit string decodes."""
    used = lengths[lengths > 0].astype(np.int64)
    return bool(used.size and (1 << (MAX_LENGTH - used)).sum() == 1 << MAX_LENGTH)


def decoding_table(lengths: NDArray[np.uint8]) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Decoding tables of a complete code, indexed by the next MAX_LENGTH bits of a stream.

    Returns:
        entries: (2**MAX_LENGTH,), from the lowest bit: up to three symbols (8 bits each), their total code length (4
            bits), their number (2 bits).
        first: (2**MAX_LENGTH,), code length of the first symbol.
    """
    symbols = np.zeros(1 << MAX_LENGTH, np.uint32)
    first = np.zeros(1 << MAX_LENGTH, np.uint8)
    for symbol, code in enumerate(canonical_codes(lengths).tolist()):
        if length := code >> 16:
            symbols[code & 0xFFFF :: 1 << length] = symbol
            first[code & 0xFFFF :: 1 << length] = length
    entries, used, number = symbols.copy(), first.astype(np.uint32), np.ones_like(symbols)
    window = np.arange(1 << MAX_LENGTH, dtype=np.uint32)
    for place in range(1, SYMBOLS_PER_ENTRY):
        rest = window >> used
        fits = (number == place) & (used + first[rest] <= MAX_LENGTH)
        entries |= np.where(fits, symbols[rest] << np.uint32(8 * place), 0).astype(np.uint32)
        used += np.where(fits, first[rest], 0).astype(np.uint32)
        number += fits
    return entries | used << np.uint32(24) | number << np.uint32(28), first


def write_lengths(writer: BitWriter, lengths: NDArray[np.uint8]) -> None:
    """Append the code lengths (symbols,), 0 for an absent symbol.

    Symbol by symbol: a presence bit if any symbol is absent, then the difference to the previous present length.
    """
    holes = bool((lengths == 0).any())
    writer.bits(holes, 1)
    previous = max(1, (len(lengths) - 1).bit_length())
    for length in lengths.tolist():
        if holes:
            writer.bits(length > 0, 1)
        if length:
            writer.signed(length - previous)
            previous = length


def read_lengths(reader: BitReader, count: int) -> NDArray[np.uint8]:
    """Inverse of `write_lengths`: lengths (count,).

    Raises:
        FormatError: if they do not form a complete code.
    """
    lengths = np.zeros(count, np.uint8)
    holes = reader.bits(1)
    previous = max(1, (count - 1).bit_length())
    for symbol in range(count):
        if not holes or reader.bits(1):
            previous += reader.signed()
            if not 1 <= previous <= MAX_LENGTH:
                raise FormatError(f"a Huffman code has a length of {previous} bits, expected 1 to {MAX_LENGTH}")
            lengths[symbol] = previous
    if holes and lengths.all():
        raise FormatError("a Huffman code is marked to have absent symbols but has none")
    if lengths.any() and not is_complete(lengths):
        raise FormatError("Kraft's sum of a Huffman code is not 1")
    return lengths


def _canonical_order(lengths: NDArray[np.uint8]) -> list[int]:
    used = np.flatnonzero(lengths)
    order: list[int] = used[np.argsort(lengths[used], kind="stable")].tolist()
    return order
