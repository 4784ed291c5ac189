"""A million mutations of blobs and of whole files: python -m plugins.huffman.tests.fuzz_codec [ROUNDS [SEED]].

Prints progress after every tenth. Stops with an error at the first mutation that is handled wrongly; the seed and the
number of the mutation reproduce it.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from .helpers_fuzz import small_blobs
from .test_codec_fuzz import fuzz
from .test_file_fuzz import KINDS, fuzz_files, original

PARTS = 10


def main(rounds: int = 1_000_000, seed: int = 0) -> None:
    blobs = small_blobs()
    begin, done, refused = time.perf_counter(), 0, 0
    each = -(-rounds // (PARTS * 2 * len(blobs)))
    each_file = -(-rounds // (PARTS * 2 * len(KINDS)))
    with TemporaryDirectory() as folder:
        contents = []
        for kind in KINDS:
            (Path(folder) / kind).mkdir()
            contents.append(original(kind, Path(folder) / kind))
        work = Path(folder) / "work"
        work.mkdir()
        for part in range(PARTS):
            for number, blob in enumerate(blobs):
                refused += fuzz(blob, each, seed + 1000 * part + number)
            for number, content in enumerate(contents):
                refused += fuzz_files(content, work, each_file, seed + 1000 * part + 100 + number)
            done += each * len(blobs) + each_file * len(contents)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(
                f"{done:,} mutations, {refused:,} refused, {time.perf_counter() - begin:.0f} s, {peak:,} MiB at most",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
