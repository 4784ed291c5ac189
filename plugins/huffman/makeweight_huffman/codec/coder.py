"""Coding of one field, block by block, with code tables shared by all blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec import codes, neighbours, streams, words
from makeweight_huffman.codec.bits import FormatError, read_varint, write_varint
from makeweight_huffman.codec.fields import Field

FOUR_STREAMS = 4096  # smallest number of symbols that is split into four streams

Words = NDArray[np.unsignedinteger]
Piece = bytes | memoryview  # part of an encoded block
Array = TypeVar("Array", bound=NDArray[Any])


@dataclass(frozen=True)
class Places:
    """Positions of a block's symbols among its cells; needed for codes that depend on the neighbours' signs."""

    positions: NDArray[np.int32]  # (symbols,)
    cells: int
    lag: int


def readonly(array: Array) -> Array:
    """A read-only view: kernels are compiled for read-only arrays alone, not for writable ones too."""
    view = array.view()
    view.flags.writeable = False
    return view


class FieldCoder:
    """Encodes and decodes one field.

    Symbols are bytes: the field's values if these fit 8 bits, otherwise their indices in the alphabet.

    Args:
        field: the field, as described by the header.
        dtype: dtype of the words.
        meanings: (symbols,), the word of each symbol; its highest bit is the sign that selects contexts.
    """

    def __init__(self, field: Field, dtype: np.dtype[np.unsignedinteger], meanings: Words | None = None) -> None:
        self.field = field
        self._alphabet = field.alphabet if field.alphabet is not None else np.zeros(0, np.uint16)
        self.alphabet_symbols = self._alphabet if field.width <= 8 else np.arange(len(self._alphabet), dtype=np.uint16)
        self._values = np.zeros(codes.ALPHABET, dtype)
        self._values[self.alphabet_symbols] = self._alphabet.astype(dtype) << dtype.type(field.shift)
        self._signs = np.zeros(codes.ALPHABET, np.int8)
        if meanings is not None:
            first_bits = meanings >> meanings.dtype.type(8 * meanings.itemsize - 1)
            self._signs[self.alphabet_symbols] = np.where(first_bits, -1, 1)

    def encode(self, block: Words, places: Places | None) -> list[Piece]:
        """Encode this field of a block's words (words,). `places`: required for a field in context."""
        field, size = self.field, block.size
        if field.lengths is not None and len(self._alphabet) == 1:
            return []
        out = np.empty(size * max(field.width, codes.MAX_LENGTH) // 8 + 8 * streams.SLACK, np.uint8)
        if field.lengths is None:
            return [out[: streams.encode_numbers(readonly(block), field.shift, field.width, out, 0)].data]
        symbols = self.symbols(block)
        if field.in_context:
            assert places is not None, "a code in context requires the positions of its symbols"
            contexts = self.contexts(symbols, places)
            return [out[: neighbours.encode_in_context(symbols, contexts, self._codes, out, 0)].data]
        if size < FOUR_STREAMS:
            return [out[: streams.encode_symbols(symbols, 0, size, self._codes[0], out, 0)].data]
        quarter = (size + 3) // 4
        ends = [0]
        for begin in range(0, size, quarter):
            end = min(begin + quarter, size)
            ends.append(streams.encode_symbols(symbols, begin, end, self._codes[0], out, ends[-1]))
        return [*(write_varint(ends[i + 1] - ends[i]) for i in range(3)), out[: ends[4]].data]

    def decode(self, source: NDArray[np.uint8], at: int, places: Places | None, fresh: bool, block: Words) -> int:
        """Decode the field from source[at:] into a block's words (words,): set them if `fresh`, else OR into them.

        Returns:
            Index of the byte after the field.

        Raises:
            FormatError: if the field is damaged.
        """
        field = self.field
        if field.lengths is None:
            end = streams.decode_numbers(source, at, field.shift, field.width, fresh, block)
        elif len(self._alphabet) == 1:
            value = self._values[self.alphabet_symbols[0]]
            np.bitwise_or(0 if fresh else block, value, out=block)
            end = at
        else:
            direct = fresh and block.dtype == np.uint8 and field.shift == 0
            symbols = block if direct else np.empty(block.size, np.uint8)
            end = self._decode_symbols(source, at, places, symbols)
            if end >= 0 and not direct:
                words.unmap_symbols(symbols, self._values, fresh, block)
        if end < 0:
            raise FormatError("a stream of a tensor is damaged: it has the wrong length")
        return end

    def symbols(self, block: Words) -> NDArray[np.uint8]:
        """Symbols (words,) uint8 of a block's words (words,)."""
        field = self.field
        if block.dtype == np.uint8 and field.width == 8:
            return readonly(block.view(np.uint8))
        symbols = np.empty(block.size, np.uint8)
        words.map_symbols(readonly(block), field.shift, (1 << field.width) - 1, self._inverse, symbols)
        return readonly(symbols)

    def contexts(self, symbols: NDArray[np.uint8], places: Places) -> NDArray[np.uint8]:
        """Context (index of the code) of each symbol, (symbols,) uint8."""
        contexts = np.empty(symbols.size, np.uint8)
        signs = np.zeros(places.cells, np.int8)
        neighbours.collect_contexts(symbols, places.positions, places.lag, self._signs, signs, contexts)
        return contexts

    def _decode_symbols(self, source: NDArray[np.uint8], at: int, places: Places | None, symbols: Words) -> int:
        entries, first = self._tables
        if self.field.in_context:
            if places is None:
                return -1
            signs = np.zeros(places.cells, np.int8)
            return neighbours.decode_in_context(
                source, at, entries, first, places.positions, places.lag, self._signs, signs, symbols
            )
        if symbols.size < FOUR_STREAMS:
            return streams.decode_symbols(source, 8 * at, source.size, entries[0], first[0], symbols, 0, symbols.size)
        sizes = []
        for _ in range(3):
            size, at = read_varint(source.data, at)
            sizes.append(size)
        starts = at + np.cumsum([0, *sizes], dtype=np.int64)
        if sum(sizes) > source.size - at:
            return -1
        return streams.decode_four(source, starts, entries[0], first[0], symbols)

    @cached_property
    def _lengths(self) -> NDArray[np.uint8]:
        assert self.field.lengths is not None
        lengths = np.zeros((len(self.field.lengths), codes.ALPHABET), np.uint8)
        lengths[:, self.alphabet_symbols] = self.field.lengths
        return lengths

    @cached_property
    def _codes(self) -> NDArray[np.uint32]:
        return np.stack([codes.canonical_codes(row) for row in self._lengths])

    @cached_property
    def _tables(self) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        tables = [codes.decoding_table(row) for row in self._lengths]
        return np.stack([entries for entries, _ in tables]), np.stack([first for _, first in tables])

    @cached_property
    def _inverse(self) -> NDArray[np.uint8]:
        inverse = np.zeros(1 << self.field.width, np.uint8)
        inverse[self._alphabet] = self.alphabet_symbols
        return inverse
