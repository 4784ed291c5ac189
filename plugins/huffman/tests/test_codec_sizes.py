"""Coded sizes against target figures."""

from __future__ import annotations

import numpy as np
import pytest

from makeweight_huffman.codec.container import encode

from .helpers_codec import coded_network

SAFETENSORS_HEADER = 200  # bytes, about, of the file around a blob


@pytest.mark.parametrize(("network", "limit"), [("lenet300", 27_400), ("lenet5", 44_200)])
def test_the_coded_networks_take_less_than_the_standards_arithmetic_coder_needs(network: str, limit: int) -> None:
    assert len(encode(coded_network(network))) <= limit - SAFETENSORS_HEADER


def test_gaussian_floats_take_little_more_than_their_entropy() -> None:
    weights = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype("<f4")
    words = weights.view("<u4")
    half = ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype("<u2")  # bfloat16, rounded to nearest even
    assert encode([("w", "BF16", half.shape, half.view(np.uint8))]).size * 8 / half.size <= 10.60
    assert encode([("w", "F32", weights.shape, weights.view(np.uint8))]).size * 8 / weights.size <= 26.6


def test_indices_take_little_more_than_their_entropy() -> None:
    share = np.exp(-(((np.arange(32) - 15.5) / 3.3) ** 2) / 2)
    share /= share.sum()
    entropy = -(share * np.log2(share)).sum()
    symbols = np.random.default_rng(0).choice(32, 1 << 20, p=share).astype(np.uint8)
    assert entropy == pytest.approx(3.77, abs=0.01)
    assert encode([("w", "U8", symbols.shape, symbols)]).size * 8 / symbols.size <= 3.85


def test_sparse_positions_take_little_more_than_their_entropy() -> None:
    occupied = np.random.default_rng(0).random(1 << 20) < 0.02
    entropy = 0.02 * np.log2(1 / 0.02) + 0.98 * np.log2(1 / 0.98)
    coded = encode([("w", "F32", (1024, 1024), occupied.astype("<f4").view(np.uint8))])
    assert coded.size * 8 / occupied.size <= 1.02 * entropy


def test_columns_that_are_always_empty_cost_next_to_nothing() -> None:
    random = np.random.default_rng(0)
    occupied = random.random((300, 784)) < 0.1
    half = occupied & (np.arange(784) % 2 == 0)
    both = [
        encode([("w", "F32", mask.shape, mask.astype("<f4").view(np.uint8).ravel())]).size for mask in (occupied, half)
    ]
    assert both[1] < 0.56 * both[0]


def test_a_small_network_pays_little_beyond_its_elements() -> None:
    entries = [
        (f"layer{i}.{kind}", "F32", (16,), np.random.default_rng(i).integers(0, 256, 64, np.uint8))
        for i in range(4)
        for kind in ("weight", "bias")
    ]
    assert len(encode(entries)) - 8 * 64 <= 8 * 16


def test_low_bits_that_are_zero_in_all_words_cost_nothing() -> None:
    random = np.random.default_rng(0)
    words = random.normal(0, 0.1, 300).astype("<f4").view("<u4") & np.uint32(0xFFFF0000)
    half = (words >> 16).astype("<u2")
    as_float = encode([("bias", "F32", (300,), words.view(np.uint8))])
    assert len(as_float) <= len(encode([("bias", "BF16", (300,), half.view(np.uint8))])) + 1


def test_a_tensor_whose_beginning_differs_from_the_rest_still_packs_well() -> None:
    occupied = np.random.default_rng(0).random((3000, 1024)) < 0.02
    occupied[:1024] = False
    entropy = 1976 / 3000 * (0.02 * np.log2(1 / 0.02) + 0.98 * np.log2(1 / 0.98))
    coded = encode([("w", "F32", occupied.shape, occupied.astype("<f4").view(np.uint8).ravel())])
    assert coded.size * 8 / occupied.size <= 1.05 * entropy
