"""A field's bits of one block after another, with the tables that all blocks share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec import codes, neighbours, streams, words
from makeweight_huffman.codec.bits import FormatError, read_varint, write_varint
from makeweight_huffman.codec.fields import Field

FOUR_STREAMS = 4096  # symbols from which on a field's stream is cut in four

Words = NDArray[np.unsignedinteger]
Piece = bytes | memoryview  # what a block is put together from
Array = TypeVar("Array", bound=NDArray[Any])


@dataclass(frozen=True)
class Places:
    """Where a block's symbols stand among its cells; with it, a code may depend on the neighbours' signs."""

    positions: NDArray[np.int32]  # (symbols,)
    cells: int
    lag: int


def readonly(array: Array) -> Array:
    """A view that cannot be written to: kernels are compiled for these alone, not for both sorts."""
    view = array.view()
    view.flags.writeable = False
    return view


class FieldCoder:
    """Writes and reads one field.

    Its symbols are bytes: the field's values where these are no wider, else their numbers in the alphabet.

    Args:
        field: what the header says.
        dtype: of the words.
        meanings: (symbols,), the word that each symbol stands for; their first bits are the signs for contexts.
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
        """The field's bits of a block's words, (words,)."""
        field, size = self.field, block.size
        if field.lengths is not None and len(self._alphabet) == 1:
            return []
        out = np.empty(size * max(field.width, codes.MAX_LENGTH) // 8 + 8 * streams.SLACK, np.uint8)
        if field.lengths is None:
            return [out[: streams.encode_numbers(readonly(block), field.shift, field.width, out, 0)].data]
        symbols = self.symbols(block)
        if field.in_context:
            assert places is not None, "a code in context needs the places of its symbols"
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
        """Put the field's bits from byte `at` on into a block's words, beside those that are there unless `fresh`.

        Returns:
            The byte after them.

        Raises:
            FormatError: when they are damaged.
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
            raise FormatError("a stream of a tensor is damaged: it does not end where it should")
        return end

    def symbols(self, block: Words) -> NDArray[np.uint8]:
        """The symbols (uint8) of a block's words, (words,)."""
        field = self.field
        if block.dtype == np.uint8 and field.width == 8:
            return readonly(block.view(np.uint8))
        symbols = np.empty(block.size, np.uint8)
        words.map_symbols(readonly(block), field.shift, (1 << field.width) - 1, self._inverse, symbols)
        return readonly(symbols)

    def contexts(self, symbols: NDArray[np.uint8], places: Places) -> NDArray[np.uint8]:
        """Which code each symbol has, (symbols,)."""
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
