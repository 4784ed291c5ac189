"""Mutations of blobs and of whole files, and the blobs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from makeweight_huffman.codec.container import encode

from .helpers_codec import random_entry

SECONDS = 30.0  # limit for one mutation: numba may have to compile kernels for a new width
MEMORY = 256 << 20  # bytes beyond the decoded blob, including the compiler's
TOKENS = ["{", "}", "[", "]", '"', ",", ":", "-1", "1e999", "null", "18446744073709551616", "9" * 5000, "[" * 2000, " ",
          '"__metadata__":{},', '"huffman"', '"F32"', '"F4"', "[0,0]", "\\ud800", "\u00e9", "\0"]  # fmt: skip


def mutations(blob: bytes, rounds: int, random: np.random.Generator) -> Iterator[bytes]:
    """Bit flips, truncations, splices, and edits of the first bytes, which hold the headers."""
    for number in range(rounds):
        mutation = bytearray(blob)
        place, other = random.integers(0, len(blob), 2).tolist()
        if number % 5 == 0:
            mutation[place] ^= 1 << int(random.integers(8))
        elif number % 5 == 1:
            del mutation[place:]
        elif number % 5 == 2:
            mutation[place : place + int(random.integers(16))] = blob[other : other + int(random.integers(16))]
        elif number % 5 == 3:
            mutation[int(random.integers(min(64, len(blob))))] = int(random.integers(256))
        else:
            for spot in random.integers(0, len(blob), 4).tolist():
                mutation[spot] = int(random.integers(256))
        yield bytes(mutation)


def small_blobs() -> list[bytes]:
    """Blobs that use all representations."""
    random = np.random.default_rng(0)
    columns = random.random(50) ** 4
    image = np.where(random.random((80, 50)) < columns, random.integers(1, 20, (80, 50)), 0).astype("<f4")
    return [
        encode([random_entry(seed, f"layer.{kind}", dtype, shape, kind, density) for kind in kinds]).tobytes()
        for seed, dtype, shape, kinds, density in [
            (907, "F32", (60, 50), ["few", "constant"], 0.1),
            (907, "F32", (6000,), ["few", "floats"], 1),
            (2, "BF16", (50, 100), ["floats", "few"], 0.3),
            (3, "U8", (10_000,), ["few"], 1),
            (5, "F64", (5, 6, 7), ["floats", "few", "uniform"], 0.5),
            (299, "F32", (2, 5000), ["few"], 1),
        ]
    ] + [encode([("w", "F32", (80, 50), image.view(np.uint8).ravel())]).tobytes()]


def file_mutations(content: bytes, rounds: int, random: np.random.Generator) -> Iterator[bytes]:
    """`mutations` of a safetensors file, and edits of its header, with the old or the corrected header length."""
    length = 8 + int.from_bytes(content[:8], "little")
    anywhere = mutations(content, rounds, random)
    for number in range(rounds):
        if number % 2:
            yield next(anywhere)
            continue
        header = content[8:length].decode()
        for _ in range(int(random.integers(1, 4))):
            place = int(random.integers(len(header)))
            kept = place + int(random.integers(6))
            token = str(random.integers(300)) if number % 4 else TOKENS[int(random.integers(len(TOKENS)))]
            header = header[:place] + token + header[kept:]
        edited = header.encode()
        before = content[:8] if number % 6 == 0 else len(edited).to_bytes(8, "little")
        yield before + edited + content[length:]
