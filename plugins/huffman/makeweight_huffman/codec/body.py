"""Coding of one tensor's blocks under a plan. Blocks are independent, so threads can share them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, islice, pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec import codes, neighbours, positions, runs, words
from makeweight_huffman.codec.bits import FormatError, Source, read_varint
from makeweight_huffman.codec.codebook import Codebook
from makeweight_huffman.codec.coder import FieldCoder, Piece, Places, Words, readonly
from makeweight_huffman.codec.model import CLASSES, DIVISORS
from makeweight_huffman.codec.plan import FIRST_VERSION, Plan
from makeweight_huffman.codec.streams import SLACK

SHARES = 4  # tasks per thread when a tensor is decoded

Item = TypeVar("Item")
Result = TypeVar("Result")


class BodyCoder:
    """Encodes and decodes the blocks of a tensor.

    Args:
        plan: the representation of the tensor.
        size: number of words in the tensor.
        columns: number of words in a row.
    """

    def __init__(self, plan: Plan, size: int, columns: int) -> None:
        self.plan = plan
        self.size = size
        self._columns = columns
        self._dtype = np.dtype(f"u{plan.width // 8}")
        self._codebook = None if plan.codebook is None else Codebook(plan.codebook, self._dtype)
        self._inner = self._dtype if self._codebook is None else self._codebook.dtype
        self.coders = [FieldCoder(field, self._inner, self._meanings(field.alphabet)) for field in plan.fields]

    def encode(self, tensor: Words, threads: int = 1) -> Iterator[bytes]:
        """Encode a tensor (size,); yields its blocks in order."""
        return in_order(lambda begin: self._encode_block(self._slice(tensor, begin)), self._begins(), threads)

    def decode(self, source: Source, at: int, limit: int, out: Words, threads: int = 1) -> None:
        """Decode source[at:limit] into out (size,).

        Raises:
            FormatError: if it is damaged.
        """
        blocks = list(zip(self._begins(), self._ranges(source, at, limit), strict=True))
        share = -(-len(blocks) // (SHARES * threads))  # per task: submitting costs a third of decoding a block

        def fill(first: int) -> None:
            for begin, place in blocks[first : first + share]:
                self._decode_block(array_of(source, *place), self._slice(out, begin))

        for _ in in_order(fill, range(0, len(blocks), share), threads):
            pass

    def decoded(self, source: Source, at: int, limit: int, threads: int = 1) -> Iterator[Words]:
        """Decode block by block; yields the words of each in a new array. Raises FormatError as `decode` does."""

        def make(block: tuple[int, tuple[int, int]]) -> Words:
            out = np.empty(min(self.plan.block, self.size - block[0]), self._dtype)
            self._decode_block(array_of(source, *block[1]), out)
            return out

        return in_order(make, zip(self._begins(), self._ranges(source, at, limit), strict=True), threads)

    def _ranges(self, source: Source, at: int, limit: int) -> list[tuple[int, int]]:
        """Byte range of each block. The lengths precede the blocks if there are several."""
        sizes = []
        if len(self._begins()) > 1:
            for _ in self._begins():
                size, at = read_varint(source, at)
                sizes.append(size)
            if at + sum(sizes) != limit:
                raise FormatError(f"the blocks of a tensor end at byte {at + sum(sizes)}, expected {limit}")
        return list(pairwise(accumulate(sizes, initial=at))) if sizes else [(at, limit)]

    def _encode_block(self, block: Words) -> bytes:
        block = aligned(block)
        places, where = None, None
        pieces: list[Piece] = []
        if self.plan.sparse:
            occupied, where = self.occupied(block)
            places = self._places(where, block.size)
            pieces.append(self._encode_positions(occupied, where))
            block = block[where]
        if self._codebook is not None:
            block = self._codebook.indices(block)
        for coder in self.coders:
            pieces += coder.encode(block, places)
        return b"".join(pieces)

    def occupied(self, block: Words) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Flags (words,) of the words other than the background, and the positions (other words,) of these."""
        assert self.plan.sparse
        occupied, where = np.empty(block.size, np.uint8), np.empty(block.size, np.int32)
        found = words.split(readonly(block), np.uint64(self.plan.sparse.background), occupied, where)
        return occupied, where[:found]

    def count_contexts(self, tensor: Words) -> NDArray[np.int64]:
        """Count each symbol of the only field in each context: (CONTEXTS, symbols)."""
        coder = self.coders[0]
        counts = np.zeros((neighbours.CONTEXTS, codes.ALPHABET), np.int64)
        for begin in self._begins():
            block = aligned(self._slice(tensor, begin))
            _, where = self.occupied(block)
            places = self._places(where, block.size)
            assert places, "contexts require a model"
            values = block[where]
            symbols = coder.symbols(values if self._codebook is None else self._codebook.indices(values))
            np.add.at(counts, (coder.contexts(symbols, places), symbols), 1)
        return counts[:, coder.alphabet_symbols]

    def _encode_positions(self, occupied: NDArray[np.uint8], where: NDArray[np.int32]) -> Piece:
        sparse = self.plan.sparse
        assert sparse
        lengths = np.empty(where.size + CLASSES, np.int32)
        kinds = np.zeros(lengths.size, np.uint8)
        if sparse.model is None:
            used = runs.collect_gaps(where, occupied.size, lengths)
        else:
            classes = np.empty(occupied.size, np.uint8)
            parameters = sparse.model.parameters()
            positions.classify(occupied, self._columns, parameters, positions.SCORES, classes)
            used = runs.collect_runs(occupied, classes, lengths, kinds)
        lengths, kinds, divisors = lengths[:used], kinds[:used], DIVISORS[sparse.divisors]
        quotients = int((lengths // np.maximum(divisors[kinds], 1)).sum())
        out = np.empty((quotients + 32 * used) // 8 + 2 * SLACK, np.uint8)
        return out[: runs.write_runs(lengths, kinds, divisors, out, 0)].data

    def _decode_block(self, source: NDArray[np.uint8], out: Words) -> None:
        target = out if out.flags.aligned else np.empty_like(out)
        values, places, where, at = target, None, None, 0
        if self.plan.sparse:
            at, where = self._decode_positions(source, target.size)
            places = self._places(where, target.size)
            values = np.empty(where.size, self._dtype)
        inner = values if self._codebook is None else np.empty(values.size, self._inner)
        for number, coder in enumerate(self.coders):
            at = coder.decode(source, at, places, number == 0, inner) if inner.size else at
        if at != source.size:
            raise FormatError(f"a block has {source.size - at} unused bytes at its end")
        if self._codebook is not None:
            self._codebook.values(inner, values)
        if self.plan.sparse:
            target.fill(self.plan.sparse.background)
            target[where] = values
        if target is not out:
            out[:] = target

    def _decode_positions(self, source: NDArray[np.uint8], cells: int) -> tuple[int, NDArray[np.int32]]:
        sparse = self.plan.sparse
        assert sparse
        where = np.empty(cells, np.int32)
        divisors = DIVISORS[sparse.divisors]
        if sparse.model is None:
            at, found = runs.decode_gaps(source, divisors[0], cells, where)
        else:
            occupied = np.empty(cells, np.uint8)
            parameters = sparse.model.parameters()
            at, found = positions.decode_positions(
                source, self._columns, parameters, positions.SCORES, divisors, occupied, where
            )
        if at < 0:
            raise FormatError("the positions of a tensor are damaged")
        return at, where[:found]

    def _places(self, where: NDArray[np.int32], cells: int) -> Places | None:
        model = self.plan.sparse.model if self.plan.sparse else None
        return Places(where, cells, model.lag) if model else None

    def _meanings(self, alphabet: NDArray[np.uint16] | None) -> Words | None:
        if alphabet is None or not self.plan.has_contexts:
            return None
        if self.plan.codebook is None:
            shift = 0 if self.plan.version == FIRST_VERSION else self.plan.trailing
            result: Words | None = alphabet.astype(self._dtype) << self._dtype.type(shift)
            return result
        known = np.minimum(alphabet, len(self.plan.codebook) - 1)  # larger indices are refused when they occur
        return self.plan.codebook[known].astype(self._dtype)

    def _begins(self) -> range:
        return range(0, self.size, self.plan.block)

    def _slice(self, tensor: Words, begin: int) -> Words:
        return tensor[begin : begin + self.plan.block]


def aligned(array: Words) -> Words:
    """The array itself, or a copy if it is not aligned."""
    return array if array.flags.aligned else array.copy()


def array_of(source: Source, begin: int, end: int) -> NDArray[np.uint8]:
    """source[begin:end] as a read-only array. Raises FormatError if it exceeds the source."""
    if not begin <= end <= len(source):
        raise FormatError("a block exceeds the blob")
    return readonly(np.frombuffer(source[begin:end], np.uint8))


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield function(item) for each item in order; threads compute ahead by at most 2 results each."""
    if threads <= 1:
        yield from map(function, items)
        return
    left = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(function, item) for item in islice(left, 2 * threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(left, 1))
            yield result
