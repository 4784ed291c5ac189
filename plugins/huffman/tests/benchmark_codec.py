"""Speed and size of the codec, run by hand: python benchmark_codec.py [millions of symbols, 100].

Each line: bits a word beside the entropy of the words taken one by one and zstd -19 (of the first 10 MB); megawords a
second encoding and decoding on one thread, and decoding on two (the best of three runs, after numba has compiled);
memory beyond input and output.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import zstandard
from numpy.typing import NDArray

from makeweight_huffman.codec.container import decode_tensor, describe, encode_tensor

ZSTD_BYTES = 10_000_000


def five_bit_symbols(size: int) -> NDArray[np.uint8]:
    """Symbols below 32 whose entropy is 3.77 bits."""
    share = np.exp(-(((np.arange(32) - 15.5) / 3.3) ** 2) / 2)
    thresholds = np.cumsum(share / share.sum()).astype(np.float32)
    random = np.random.default_rng(0)
    symbols = np.empty(size, np.uint8)
    for begin in range(0, size, 1 << 22):  # in parts, or the memory reported below would be this function's
        part = symbols[begin : begin + (1 << 22)]
        part[:] = np.minimum(np.searchsorted(thresholds, random.random(part.size, np.float32)), 31)
    return symbols


def tensors(size: int) -> dict[str, tuple[str, tuple[int, ...], NDArray[np.generic]]]:
    """Name: dtype, shape, elements."""
    random = np.random.default_rng(1)
    rows = size // 8 // 1000
    codebook = np.sort(random.normal(0, 0.05, 32)).astype("<f4")
    weights = random.normal(0, 0.02, size // 8).astype("<f4")
    symbols = five_bit_symbols(rows * 1000)
    sparse = np.where(random.random(rows * 1000) < 0.05, codebook[symbols], 0).astype("<f4")
    return {
        "five-bit indices": ("U8", (size,), five_bit_symbols(size)),
        "32 distinct float32": ("F32", symbols.shape, codebook[symbols]),
        "Gaussian float32": ("F32", weights.shape, weights),
        "Gaussian bfloat16": ("BF16", weights.shape, (weights.view("<u4") >> 16).astype("<u2")),
        "5 % of 32 float32": ("F32", (rows, 1000), sparse),
    }


def entropy(words: NDArray[np.generic]) -> float:
    """Bits a word, words taken one by one; NaN where there are too many distinct ones to tell."""
    sample = words.ravel()[: 1 << 20]
    counts = np.unique(sample, return_counts=True)[1]
    if len(counts) > len(sample) // 10:
        return float("nan")
    return float(-(counts / counts.sum() * np.log2(counts / counts.sum())).sum())


def best_of(runs: int, function: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


def peak_memory() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    size = int(1e6 * float(sys.argv[1] if len(sys.argv) > 1 else 100))
    small = np.tile(np.arange(64, dtype=np.uint8), 8192)
    decode_tensor(encode_tensor("w", "U8", small.shape, small), np.empty_like(small))
    symbols = five_bit_symbols(size)
    before = peak_memory()
    blob = encode_tensor("w", "U8", symbols.shape, symbols)
    print(f"encoding takes {peak_memory() - before - blob.size / 2**20:.0f} MiB beyond tensor and blob")
    out = np.ones_like(symbols)
    before = peak_memory()
    decode_tensor(blob, out)
    print(f"decoding takes {peak_memory() - before:.0f} MiB beyond them")
    print(f"{'':20} {'bits':>7} {'entropy':>8} {'zstd -19':>8} {'encode':>8} {'decode':>8} {'2 threads':>9}   Mwords/s")
    for name, (dtype, shape, elements) in tensors(size).items():
        data = elements.view(np.uint8).ravel()
        out = np.ones_like(data)
        encode_seconds = best_of(3, lambda: encode_tensor("w", dtype, shape, data))  # noqa: B023
        blob = encode_tensor("w", dtype, shape, data)
        decode_seconds = best_of(3, lambda: decode_tensor(blob, out))  # noqa: B023
        both_seconds = best_of(3, lambda: decode_tensor(blob, out, threads=2))  # noqa: B023
        assert np.array_equal(out, data), name
        zstd = len(zstandard.ZstdCompressor(19).compress(data[:ZSTD_BYTES].tobytes())) / min(ZSTD_BYTES, data.size)
        speeds = [elements.size / 1e6 / seconds for seconds in (encode_seconds, decode_seconds, both_seconds)]
        bits = 8 * blob.size / elements.size
        print(
            f"{name:20} {bits:7.4f} {entropy(elements):8.4f} {8 * elements.itemsize * zstd:8.4f} "
            f"{speeds[0]:8.0f} {speeds[1]:8.0f} {speeds[2]:9.0f}   {describe(blob)[0].representation}"
        )


if __name__ == "__main__":
    main()
