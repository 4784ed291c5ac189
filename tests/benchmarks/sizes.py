"""Sizes and speeds: runs beside the papers, coded networks beside other coders, and the codec by itself.

python tests/benchmarks/sizes.py [run …] [--millions 100]. The runs are those below runs/ unless they are named, the
coded networks are those of $MAKEWEIGHT_DATA/coded. `make bench` runs it.
"""

from __future__ import annotations

import argparse
import lzma
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import zstandard
from numpy.typing import NDArray

from makeweight import MakeweightError
from makeweight.commands.report import read_run
from makeweight.console import console, print_table
from makeweight.files.file_bytes import FileBytes
from makeweight.files.safetensors_file import read_header
from makeweight.files.tensor_bytes import Stored
from makeweight_huffman.codec import codes
from makeweight_huffman.codec.container import decode_tensor, describe, encode
from makeweight_huffman.packing import pack

PAPERS = {
    "lenet300": "27 KB, 1.58 % (Han 2016); 8.56 KB, 1.9 % (Oktay 2020)",
    "lenet5": "44 KB, 0.74 % (Han 2016); 2.84 KB, 1.0 % (Oktay 2020)",
}
ZSTD_BYTES = 10_000_000  # of a large tensor, that zstd -19 is tried on
RUNS = 7  # of which a speed is the median

Tensor = tuple[str, tuple[int, ...], NDArray[np.generic]]  # dtype, shape, elements


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="run directories; those below runs/ unless given")
    parser.add_argument("--millions", type=float, default=100, help="five-bit indices to code; of the rest an eighth")
    arguments = parser.parse_args()
    target = console()
    if rows := run_rows(arguments.runs or sorted(Path("runs").glob("*"))):
        print_table(target, ["run", "bytes", "error", "of the test set", "others"], rows, numbers=False)
    coded = Path(os.environ.get("MAKEWEIGHT_DATA", "data")) / "coded"
    if rows := [network_row(path) for path in sorted(coded.glob("*.safetensors"))]:
        header = ["whole files, bytes", "makeweight", "bits", "entropy", "zstd -19", "xz -9e", "Han's format"]
        print_table(target, header, rows)
    header = ["codec", "bits", "entropy", "zstd -19", "encode", "2 threads", "decode", "2 threads", "memory"]
    print_table(target, header, codec_rows(int(1e6 * arguments.millions)))
    print(
        f"Speeds: millions of elements a second, medians of {RUNS} runs after a first; of one core's time, and on two "
        f"threads of the clock's, when {os.getloadavg()[0]:.1f} programs wanted the {os.cpu_count()} cores.\n"
        "Memory: MiB that encoding and decoding take beyond input and output."
    )


def run_rows(runs: list[Path]) -> list[list[str]]:
    """Whole files and the error of the file read back, beside the figures of papers."""
    rows = []
    for run in runs:
        try:
            summary = read_run(run)[0]
        except MakeweightError:
            continue  # not a run, or not over
        export = summary["export"]
        if summary["metric"] == "accuracy":
            error = f"{100 * (1 - export['accuracy']):.2f} %"
            rows.append([str(run), f"{export['bytes']:,}", error, summary["data"], PAPERS.get(summary["model"], "")])
    return rows


def network_row(path: Path) -> list[str]:
    """The whole packed file, and what other coders make of the tensors when the numbers of their values are given."""
    with TemporaryDirectory() as folder:
        packed = Path(folder) / "packed.safetensors"
        pack(path, packed)
        size = packed.stat().st_size
    tensors = read_header(FileBytes(path))[0]
    words = [np.frombuffer(each.bytes.read(), "<u4") for each in tensors]
    data = b"".join(map(numbered, words))
    count = sum(each.size for each in words)
    entropy = sum(each.size * entropy_of(each) for each in words) / count
    others = [
        len(zstandard.ZstdCompressor(19).compress(data)),
        len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        sum(paper_bytes(each) for each in tensors),
    ]
    bits = [f"{8 * size / count:.4f}", f"{entropy:.4f}"]
    return [path.stem, f"{size:,}", *bits, *(f"{other:,}" for other in others)]


def numbered(words: NDArray[np.uint32]) -> bytes:
    """The values and a byte for the number of each word's: a general coder makes less of these than of the words."""
    values, numbers = np.unique(words, return_inverse=True)
    return values.tobytes() + numbers.astype(np.uint8).tobytes() if len(values) <= 256 else words.tobytes()


def paper_bytes(stored: Stored) -> int:
    """What Deep Compression's format takes: gaps of 8 bits in convolutions and of 5 in other layers, with filler
    zeros, and the numbers of the values, each in a Huffman code; the values, and biases, as they are.

    Source: Han, Mao and Dally, Deep Compression, 2016, sections 2 to 4.
    """
    words = np.frombuffer(stored.bytes.read(), "<u4")
    if len(stored.shape) < 2:
        return words.nbytes
    longest = 256 if len(stored.shape) == 4 else 32
    gaps = np.diff(np.flatnonzero(words), prepend=-1) - 1
    fillers = gaps // longest
    gap_counts = np.bincount(gaps % longest, minlength=longest)
    gap_counts[longest - 1] += fillers.sum()
    values, value_counts = np.unique(words[words != 0], return_counts=True)
    value_counts = np.append(value_counts, fillers.sum())
    bits = sum(int((counts * codes.code_lengths(counts)).sum()) for counts in (gap_counts, value_counts))
    return bits // 8 + values.nbytes


def codec_rows(size: int) -> list[list[str]]:
    """Bits an element beside entropy and zstd, speeds on one thread and on two, and memory."""
    rows = []
    for name, (dtype, shape, elements) in tensors_of(size).items():
        data = elements.view(np.uint8).ravel()
        entry = ("w", dtype, shape, data)
        blob, out = encode([entry]), np.ones_like(data)
        decode_tensor(blob, out)  # kernels are compiled, or loaded, before memory is looked at
        memory = [peak_memory(lambda: encode([entry])) - blob.nbytes, peak_memory(lambda: decode_tensor(blob, out))]  # noqa: B023
        speeds = [
            elements.size / 1e6 / seconds(function, clock)
            for function, clock in (
                (lambda: encode([entry]), time.thread_time),  # noqa: B023
                (lambda: encode([entry], threads=2), time.perf_counter),  # noqa: B023
                (lambda: decode_tensor(blob, out), time.thread_time),  # noqa: B023
                (lambda: decode_tensor(blob, out, threads=2), time.perf_counter),  # noqa: B023
            )
        ]
        if not np.array_equal(out, data):
            raise AssertionError(f"{name} did not come back")
        start = data[:ZSTD_BYTES].tobytes()
        zstd = 8 * elements.itemsize * len(zstandard.ZstdCompressor(19).compress(start)) / len(start)
        rows.append([
            f"{name}: {describe(blob)[0].representation}", f"{8 * blob.size / elements.size:.4f}",
            f"{entropy_of(elements):.4f}", f"{zstd:.4f}", *(f"{speed:,.0f}" for speed in speeds),
            " and ".join(f"{max(0, each) / 2**20:.0f}" for each in memory),
        ])  # fmt: skip
    return rows


def tensors_of(size: int) -> dict[str, Tensor]:
    random = np.random.default_rng(1)
    rows = size // 8 // 1000
    codebook = np.sort(random.normal(0, 0.05, 32)).astype("<f4")
    weights = random.normal(0, 0.02, size // 8).astype("<f4")
    symbols = five_bit_symbols(rows * 1000)
    scattered = np.where(random.random(rows * 1000) < 0.05, codebook[symbols], 0).astype("<f4")
    columns = np.tile(random.random(1000) ** 9, rows)  # a tenth, in columns of very different density
    clustered = np.where(random.random(rows * 1000) < columns, codebook[symbols], 0).astype("<f4")
    return {
        "five-bit indices": ("U8", (size,), five_bit_symbols(size)),
        "32 values": ("F32", symbols.shape, codebook[symbols]),
        "Gaussian float32": ("F32", weights.shape, weights),
        "Gaussian bfloat16": ("BF16", weights.shape, (weights.view("<u4") >> 16).astype("<u2")),
        "5 % of 32 values": ("F32", (rows, 1000), scattered),
        "10 % in columns": ("F32", (rows, 1000), clustered),
    }


def five_bit_symbols(size: int) -> NDArray[np.uint8]:
    """Symbols below 32 whose entropy is 3.77 bits."""
    share = np.exp(-(((np.arange(32) - 15.5) / 3.3) ** 2) / 2)
    thresholds = np.cumsum(share / share.sum()).astype(np.float32)
    random = np.random.default_rng(0)
    symbols = np.empty(size, np.uint8)
    for begin in range(0, size, 1 << 22):  # in parts, which take little memory
        part = symbols[begin : begin + (1 << 22)]
        part[:] = np.minimum(np.searchsorted(thresholds, random.random(part.size, np.float32)), 31)
    return symbols


def entropy_of(elements: NDArray[np.generic]) -> float:
    """Bits an element, elements taken one by one, of the first million; NaN where nearly all are distinct."""
    sample = elements.ravel()[: 1 << 20]
    counts = np.unique(sample, return_counts=True)[1]
    if len(counts) > 1000 and len(counts) > len(sample) // 10:
        return float("nan")
    return float(-(counts / counts.sum() * np.log2(counts / counts.sum())).sum())


def seconds(function: Callable[[], object], clock: Callable[[], float]) -> float:
    """The median of several runs."""
    times = []
    for _ in range(RUNS):
        begin = clock()
        function()
        times.append(clock() - begin)
    return statistics.median(times)


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes that this process holds at most while a function runs, beyond what it held before; Linux counts them."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def status(kind: str) -> int:
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


if __name__ == "__main__":
    main()
