"""Damaged blobs: a FormatError or a bounded result, in bounded time and memory."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from makeweight_huffman.codec.bits import FormatError, write_varint
from makeweight_huffman.codec.container import decode, describe, encode
from makeweight_huffman.codec.entries import ALLOWANCE, EXPANSION

from .helpers_fuzz import MEMORY, SECONDS, mutations, small_blobs
from .helpers_memory import peak_memory


def fuzz(blob: bytes, rounds: int, seed: int) -> int:
    """Decode `rounds` mutations of a blob; returns the number of refusals.

    Raises:
        AssertionError: if decoding takes too long or exceeds the limit. Errors other than FormatError propagate.
    """
    refused = 0
    for mutation in mutations(blob, rounds, np.random.default_rng(seed)):
        begin = time.perf_counter()
        message = ""
        try:
            describe(mutation)
            decoded = sum(data.size for _, _, _, data in decode(mutation))
        except FormatError as error:
            decoded, message = 0, str(error)
        assert decoded <= EXPANSION * len(mutation) + ALLOWANCE
        assert "\n" not in message
        assert time.perf_counter() - begin < SECONDS, mutation.hex()
        refused += bool(message)
    return refused


@pytest.mark.parametrize("number", range(7))
def test_mutations_are_refused_or_bounded(number: int) -> None:
    blob = small_blobs()[number]
    with peak_memory() as peak:
        refused = fuzz(blob, rounds=700, seed=number)
    assert refused > 100
    assert peak() < EXPANSION * len(blob) + MEMORY


def test_every_truncation_is_refused() -> None:
    for blob in small_blobs():
        for end in range(0, len(blob), 1 + len(blob) // 200):
            with pytest.raises(FormatError):
                decode(blob[:end])
        with pytest.raises(FormatError):
            decode(blob + b"\0")


def test_random_bytes_are_refused_or_bounded() -> None:
    random = np.random.default_rng(0)
    refused = sum(fuzz(b"\1\1\0\1w" + random.bytes(1 + size % 100), 1, size) for size in range(2000))
    assert refused > 1900


def test_huge_shapes_are_refused_before_memory_is_allocated() -> None:
    for shape in [(1 << 40,), (1 << 62, 1 << 62), (0, 1 << 62, 1 << 62), (1 << 30, 1 << 30)]:
        blob = b"\1\1\0\1w" + bytes([14 | len(shape) << 5]) + b"".join(map(write_varint, shape)) + b"\1\0"
        tracemalloc.start()
        try:
            with pytest.raises(FormatError):
                decode(blob)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 1 << 20


def test_names_that_share_do_not_multiply() -> None:
    name = b"n" * 60_000
    again = write_varint(len(name)) + b"\1x" + b"\x21\0\0"
    blob = b"\1" + write_varint(1000) + b"\0" + write_varint(len(name)) + name + b"\x21\0\0" + again * 999
    with pytest.raises(FormatError, match="shares 60000 bytes"):
        decode(blob)


def test_rows_of_less_than_a_word_are_refused_or_decoded() -> None:
    entry = ("w", "F6_E2M3", (80, 1), np.array([0, 1, 0, 0, 2, 0] * 10, np.uint8))  # six words, eight rows, ten times
    assert np.array_equal(decode(encode([entry]))[0][3], entry[3])
    sparse = np.zeros(6000, np.uint8)
    sparse[::7] = np.arange(858) % 5
    assert np.array_equal(decode(encode([("w", "F6_E2M3", (8000, 1), sparse)]))[0][3], sparse)
