"""Round trips are exact, over dtypes, shapes, densities and representations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from makeweight_huffman.codec.bits import FormatError
from makeweight_huffman.codec.container import Entry, decode, decode_tensor, describe, encode
from makeweight_huffman.codec.tensor import DTYPES, LAYOUTS

from .helpers_codec import assert_equal, coded_network, random_entry, random_words

KINDS = ["few", "floats", "uniform", "constant"]
shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple) | st.sampled_from([(70_000,), (300, 300), (9, 1000)])


@pytest.mark.slow  # many cases
@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, 2**32),
    st.lists(
        st.tuples(
            st.text(max_size=8),
            st.sampled_from(DTYPES),
            shapes,
            st.sampled_from(KINDS),
            st.sampled_from([0, 0.03, 0.5, 1]),
        ),
        max_size=4,
        unique_by=lambda tensor: tensor[0],
    ),
)
def test_any_tensors_come_back(seed: int, tensors: list[tuple[str, str, tuple[int, ...], str, float]]) -> None:
    entries = [
        random_entry(seed, name, dtype, shape if LAYOUTS[dtype].element % 8 == 0 else (*shape, 8), kind, density)
        for name, dtype, shape, kind, density in tensors
    ]
    blob = encode(entries)
    assert_equal(decode(blob), entries)
    assert [(item.name, item.dtype, item.shape, item.decoded_bytes) for item in describe(blob)] == [
        (name, dtype, shape, data.size) for name, dtype, shape, data in entries
    ]


@pytest.mark.slow  # large tensors
@pytest.mark.parametrize("density", [0.001, 0.1, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["U8", "BF16", "F32", "F64"])
def test_tensors_of_many_blocks_come_back_with_and_without_threads(dtype: str, kind: str, density: float) -> None:
    shape = (1531, 1024)  # several blocks, sparse or dense; the last one is short
    name, _, _, data = random_entry(7, "w", dtype, shape, kind, density)
    blob = encode([(name, dtype, shape, data)], threads=2)
    assert np.array_equal(blob, encode([(name, dtype, shape, data)]))
    for threads in (1, 3):
        out = np.full(data.size, 0xA5, np.uint8)
        decode_tensor(blob, out, threads)
        assert np.array_equal(out, data)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_buffers_need_not_be_aligned(offset: int) -> None:
    data = random_words(3, 5000, 32, "few", 0.2)
    memory = np.empty(data.size + offset, np.uint8)
    memory[offset:] = data
    blob = encode([("w", "F32", (5000,), memory[offset:])])
    memory[:] = 0
    decode_tensor(blob, memory[offset:])
    assert np.array_equal(memory[offset:], data)


@pytest.mark.parametrize("background", [0.0, -0.0, np.nan])
def test_floats_keep_their_bits(background: float) -> None:
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38], "<f4")
    special = np.append(special, np.array([0x7FC00001, 0xFFC12345, 0x7F800001], "<u4").view("<f4"))  # NaN payloads
    values = np.where(np.arange(4096) % 9 == 4, special[np.arange(4096) % len(special)], np.float32(background))
    entry = ("w", "F32", (64, 64), values.astype("<f4").view(np.uint8))
    assert_equal(decode(encode([entry])), [entry])


RANDOM = np.random.default_rng(0)
THIN = RANDOM.random(20_000) < 0.05
EIGHT = RANDOM.choice(np.arange(1, 9), 20_000)
GAUSSIAN = RANDOM.normal(0, 0.02, 20_000)


@pytest.mark.parametrize(
    ("values", "representation"),
    [
        (np.full(20_000, 0.25), "constant"),
        (RANDOM.integers(0, 2**32, 20_000, dtype="<u4").view("<f4"), "raw"),
        (EIGHT, "codebook of 8"),
        (np.where(THIN, EIGHT, 0), "sparse, codebook of 8"),
        (GAUSSIAN, "fields of"),
        (np.where(THIN, GAUSSIAN, 0), "sparse, fields of"),
        (np.where(THIN, 0.25, 0), "sparse, constant"),
    ],
)
def test_each_kind_of_tensor_gets_its_representation(values: NDArray[Any], representation: str) -> None:
    entry = ("w", "F32", (100, 200), values.astype("<f4").view(np.uint8))
    blob = encode([entry])
    assert describe(blob)[0].representation.startswith(representation)
    assert_equal(decode(blob), [entry])


@pytest.mark.parametrize("values", [300, 4096, 4097])
def test_codebooks_of_more_than_a_byte_come_back(values: int) -> None:
    words = np.random.default_rng(0).integers(0, 2**32, values, dtype="<u4")
    data = np.tile(words, 20).view(np.uint8)
    blob = encode([("w", "F32", (values * 20,), data)])
    assert ("codebook" in describe(blob)[0].representation) == (values <= 4096)
    assert_equal(decode(blob), [("w", "F32", (values * 20,), data)])


def test_a_large_constant_keeps_to_the_formats_own_limit() -> None:
    zeros = np.zeros(50_000_000, np.uint8)
    blob = encode([("w", "F32", (12_500_000,), zeros)])
    assert len(blob) == -(-(50_000_000 + 1 - 65536) // 4096)
    assert_equal(decode(blob), [("w", "F32", (12_500_000,), zeros)])


def test_networks_come_back() -> None:
    for name in ("lenet300", "lenet5"):
        entries = coded_network(name)
        assert_equal(decode(encode(entries)), entries)


def test_a_limit_is_kept() -> None:
    entries: list[Entry] = [("a", "U8", (1000,), random_words(1, 1000, 8, "uniform", 1))]
    blob = encode(entries)
    assert_equal(decode(blob, limit=1001), entries)  # the name counts
    with pytest.raises(FormatError, match="limit of 1000 bytes"):
        decode(blob, limit=1000)


def test_invalid_tensors_are_refused() -> None:
    data = np.zeros(4, np.uint8)
    for entries, words in [
        ([("a", "F32", (2,), data)], "has 4 bytes"),
        ([("a", "F12", (1,), data)], "dtype"),
        ([("a", "F4", (3,), data)], "whole bytes"),
        ([("a", "F32", (1,), data), ("a", "F32", (1,), data)], "two tensors"),
        ([("a", "F32", (-1,), data)], "shape"),
    ]:
        with pytest.raises(FormatError, match=words):
            encode(entries)
    with pytest.raises(FormatError, match="buffer"):
        decode_tensor(encode([("a", "F32", (1,), data)]), np.empty(5, np.uint8))
    with pytest.raises(FormatError, match="expected one"):
        decode_tensor(encode([]), np.empty(5, np.uint8))
