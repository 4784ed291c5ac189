"""FORMAT.md against the codec: test vectors, the two versions, and a reader written from the page alone."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from makeweight_huffman.codec.bits import FormatError
from makeweight_huffman.codec.container import Entry, decode, encode
from makeweight_huffman.codec.entries import locate_all
from makeweight_huffman.codec.plan import Plan
from makeweight_huffman.codec.tensor import read_plan

from . import plain_reader
from .helpers_codec import random_entry
from .helpers_fuzz import mutations, small_blobs
from .plain_bits import RefusedError

PAGE = (Path(__file__).parents[1] / "FORMAT.md").read_text()

# encode(signed_words(40)) by an encoder that wrote version 1 only: three codes, 23 zero bits, no codebook
VERSION_1 = bytes.fromhex(
    "01010001774e28109001cd9b042c2780817579d9f903e0af8f011ebb81b4460b6012c472aba02a14c78dc20e9c5e42a650424dcf82a943ce"
    "026a67ac4143b928a8c43f96120836040e6d808d21026cb2e99c5f4389e84f506734a902ecac13c610361d0edbbb322db8fe8db1e3644d0e"
    "5f0c44568d947313e936c9003d8fb96c61352bbe6584f72dd3683ec626b7895b2e8e071ec2441a574000"
)


def signed_words(rows: int) -> NDArray[np.float32]:
    """1, 2, 4 and 8 between zeros, negative where the one before is not zero: (rows, 16)."""
    at = np.arange(16 * rows, dtype=np.uint64)
    numbers = at * at % np.uint64(32749) * np.uint64(40503) >> np.uint64(5)  # pseudo-random
    other = numbers % 8 < np.where(at % 4 < 2, 4, 1)
    after = np.append(False, other[:-1])
    size = np.array([1, 1, 1, 1, 2, 2, 4, 8])[numbers // np.uint64(64) % np.uint64(8)]
    return np.where(other, np.where(after, -size, size), 0).astype("<f4").reshape(rows, 16)


def entry_of(name: str, words: NDArray[np.float32]) -> Entry:
    """The words as a tensor for encode."""
    return name, "F32", words.shape, words.view(np.uint8).ravel()


def plan_of(blob: bytes) -> Plan:
    """The plan of the first tensor in a blob."""
    return read_plan(locate_all(memoryview(blob))[0], memoryview(blob))[0]


def read_by_both(blob: bytes) -> list[plain_reader.Tensor]:
    """The tensors that the codec decodes, after a check that the plain reader decodes the same."""
    tensors = [plain_reader.Tensor(name, dtype, shape, data.tobytes()) for name, dtype, shape, data in decode(blob)]
    assert plain_reader.read(blob) == tensors
    return tensors


def test_the_sign_of_a_word_is_its_highest_bit_if_zero_bits_are_omitted() -> None:
    words = signed_words(160)
    blob = encode([entry_of("w", words)]).tobytes()
    plan = plan_of(blob)
    assert (plan.trailing, plan.codebook, plan.fields[0].in_context) == (23, None, True)
    assert blob[0] == 2
    assert read_by_both(blob)[0].data == words.tobytes()


def test_the_sign_of_a_word_is_its_highest_bit_if_there_is_a_codebook() -> None:
    words = signed_words(160)
    words *= np.abs(words) + np.float32(0.3)  # varied mantissas
    blob = encode([entry_of("w", words)]).tobytes()
    plan = plan_of(blob)
    assert plan.codebook is not None
    assert plan.fields[0].in_context
    assert blob[0] == 1
    assert read_by_both(blob)[0].data == words.tobytes()


def test_a_blob_of_version_1_with_other_signs_is_still_decoded_exactly() -> None:
    plan = plan_of(VERSION_1)
    assert (plan.trailing, plan.codebook, plan.fields[0].in_context) == (23, None, True)
    assert plan.fields[0].has_highest_bit
    assert read_by_both(VERSION_1) == [plain_reader.Tensor("w", "F32", (40, 16), signed_words(40).tobytes())]


def test_version_1_is_written_if_both_versions_decode_alike() -> None:
    words = signed_words(160)
    positive = np.where(words < 0, -16 * words, words).astype("<f4")
    blob = encode([entry_of("positive", positive)]).tobytes()
    plan = plan_of(blob)
    assert (plan.trailing, plan.codebook, plan.fields[0].in_context) == (23, None, True)
    assert blob[0] == 1
    assert read_by_both(b"\2" + blob[1:]) == read_by_both(blob)


def test_one_tensor_that_needs_version_2_is_enough() -> None:
    tensors = [entry_of(name, signed_words(rows)) for name, rows in (("a", 8), ("b", 160), ("c", 8))]
    blob = encode(tensors).tobytes()
    assert blob[0] == 2
    assert [tensor.data for tensor in read_by_both(blob)] == [data.tobytes() for _, _, _, data in tensors]


@pytest.mark.parametrize("version", [0, 3])
def test_other_versions_are_refused(version: int) -> None:
    blob = bytes([version]) + VERSION_1[1:]
    with pytest.raises(FormatError, match=f"has version {version}, expected 1 to 2"):
        decode(blob)
    with pytest.raises(RefusedError, match="version"):
        plain_reader.read(blob)


def vectors() -> list[tuple[str, list[plain_reader.Tensor]]]:
    """Test vectors of the page: (blob in hexadecimal, its tensors)."""
    read = []
    for blob, *lines in (each.splitlines() for each in PAGE.split("```")[1].strip().split("\n\n")):
        tensors = []
        for line in lines:
            parts = re.fullmatch(r"(\S+) (\S+) \[(.*)\] ?([0-9a-f]*)", line)
            assert parts, line
            name, dtype, shape, data = parts.groups()
            tensors.append(plain_reader.Tensor(name, dtype, tuple(map(int, shape.split(","))), bytes.fromhex(data)))
        read.append((blob, tensors))
    return read


@pytest.mark.parametrize(("blob", "tensors"), vectors())
def test_both_readers_read_the_pages_vectors(blob: str, tensors: list[plain_reader.Tensor]) -> None:
    assert read_by_both(bytes.fromhex(blob)) == tensors


def test_the_page_has_vectors_of_both_versions() -> None:
    assert [blob[:2] for blob, _ in vectors()] == ["01", "01", "02", "01"]
    assert vectors()[2][0][2:] == vectors()[3][0][2:]


def test_a_blob_that_the_plain_reader_misreads_fails_its_test() -> None:
    with patch.object(plain_reader, "read", lambda blob: []), pytest.raises(AssertionError):
        encode([entry_of("w", signed_words(1))])


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 2**32),
    st.sampled_from([("I8", 8), ("U16", 16), ("BF16", 16), ("F32", 32), ("I64", 64)]),
    st.integers(0, 8),
    st.integers(2, 8),
    st.sampled_from([0.1, 0.4, 0.8]),
    st.booleans(),
)
def test_words_that_depend_on_their_neighbours_come_back(
    seed: int, dtype: tuple[str, int], fields_bits: int, values: int, density: float, signs: bool
) -> None:
    random = np.random.default_rng(seed)
    name, width = dtype
    top = min(max(fields_bits, 3), width)
    numbers = random.integers(1, 1 << top, values)
    chosen = random.choice(numbers, 3000, p=random.dirichlet(np.full(values, 0.5)))
    other = random.random(3000) < density * random.random(50).repeat(60)
    for at in range(1, 3000):
        if signs and other[at] and other[at - 1]:  # the sign of the word before
            half = 1 << top - 1
            chosen[at] = max(chosen[at] & half - 1 | chosen[at - 1] & half, 1)
    words = np.where(other, chosen, 0).astype(np.uint64) << np.uint64(width - top)
    data = words.astype(f"<u{width // 8}").view(np.uint8)
    assert read_by_both(encode([("w", name, (50, 60), data)]).tobytes())[0].data == data.tobytes()


@pytest.mark.parametrize(("rows", "density"), [(300, 1), (1100, 0.01)])
def test_tensors_of_two_blocks_are_read_by_both(rows: int, density: float) -> None:
    entry = random_entry(4, "w", "U8", (rows, 1000), "few", density)
    assert read_by_both(encode([entry]).tobytes())[0].data == entry[3].tobytes()


@pytest.mark.slow  # many cases
def test_both_readers_refuse_the_same_damage() -> None:
    negative = encode([entry_of("w", signed_words(160))]).tobytes()
    refused = 0
    for number, blob in enumerate(
        [*small_blobs(), VERSION_1, negative, *(bytes.fromhex(blob) for blob, _ in vectors())]
    ):
        for mutation in mutations(blob, 100, np.random.default_rng(number)):
            try:
                read_by_both(mutation)
            except FormatError:
                refused += 1
                with pytest.raises(RefusedError):
                    plain_reader.read(mutation)
    assert refused > 900
