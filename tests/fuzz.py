"""All fuzzers in one command, `make fuzz SECONDS=600`: python -m tests.fuzz --seconds 600 --seed 0.

Each kind of input runs in a process of its own for its share of the time. A mutant must be accepted, or refused by a
MakeweightError of one line, within 5 s and 2 GiB. Whatever else happens is printed with the words that repeat it,
`--only files --seed 0 --first 4711 --most 1`, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LIMIT, MEMORY = 5.0, 2 << 30
"""seconds that a mutant may take, and bytes that all of a kind may take beyond what their process began with"""
HANGING = 60.0
"""seconds after which the process of a mutant is killed"""
SET_UP = 300.0
"""the same before its first mutant"""
MOST_DEATHS = 50
"""processes of a kind that may die before it is given up"""
SHOWN = 10
"""failures of a kind that are printed, each of another place"""
KINDS = {"blobs": ("tests.fuzz_files:blobs", 0.2), "files": ("tests.fuzz_files:files", 0.15),
         "headers": ("tests.fuzz_files:headers", 0.08), "checkpoints": ("tests.fuzz:checkpoints", 0.4),
         "records": ("tests.fuzz_records:records", 0.07), "yaml": ("tests.fuzz_text:yaml", 0.04),
         "json": ("tests.fuzz_text:json_files", 0.03), "onnx": ("tests.fuzz_onnx:onnx", 0.03)}  # fmt: skip
"""where each is, and its share of the time"""
Opener = Callable[[Path, int], AbstractContextManager[Callable[[int], bool]]]


@dataclass
class Found:
    """What became of the mutants of a kind so far."""

    kind: str
    seed: int
    cases: int = 0
    accepted: int = 0
    failed: int = 0
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, -1)
    """seconds, and the mutant's number"""
    peak: int = 0
    """bytes beyond those at the start"""
    failures: dict[str, str] = field(default_factory=dict)
    """the first one of each place that raised"""
    crashes: dict[str, str] = field(default_factory=dict)
    """the same for deaths in onnxruntime"""

    def fail(self, number: int, place: str, said: str) -> None:
        """A mutant was neither accepted nor refused."""
        native = self.kind == "onnx" and "signal" in place
        repeat = f"--only {self.kind} --seed {self.seed} --first {number} --most 1"
        self.failed += 1
        (self.crashes if native else self.failures).setdefault(place, f"{repeat}: {said}")

    def add(self, other: Found) -> None:
        """What another process of the same kind found."""
        for name in ("cases", "accepted", "failed", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest, self.peak = max(self.slowest, other.slowest), max(self.peak, other.peak)
        self.failures, self.crashes = other.failures | self.failures, other.crashes | self.crashes

    def __str__(self) -> str:
        took, number = self.slowest
        rate = self.cases / self.seconds if self.seconds else 0
        return (
            f"{self.kind:12}{self.cases:9,} cases {rate:7,.0f}/s {self.accepted:9,} accepted "
            f"{self.cases - self.accepted - self.failed:9,} refused {self.failed:5,} failed   "
            f"slowest {took:.2f} s (number {number})   peak {self.peak >> 20:,} MiB"
        )


@contextmanager
def checkpoints(folder: Path, seed: int) -> Iterator[Callable[[int], bool]]:
    """Checkpoints of all plugins; the numbers are those of `tests.fuzz_checkpoints`."""
    from makeweight.discovery import installed

    from .fuzz_checkpoints import CASES, mutant, originals, resumed
    from .helpers_mutants import drawn, plugins_found_once

    there = [name for name, plugins in CASES.items() if plugins.keys() <= installed().keys()]
    with warnings.catch_warnings(), plugins_found_once():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        found = list(originals(folder, there))

        def attempt(number: int) -> bool:
            case, optimizer, files = found[number % len(found)]
            changed, _ = mutant(files, drawn(seed, number))
            with TemporaryDirectory(dir=folder) as out:
                return resumed(changed, Path(out), CASES[case], optimizer)

        yield attempt


def measure(
    kind: str, seconds: float, seed: int, first: int = 0, most: int | None = None,
    began: Callable[[int, Found], None] = lambda number, found: None,
) -> Found:  # fmt: skip
    """Try mutants of a kind in this process, for so long or so many. `began` hears of each before it is tried."""
    from .helpers_mutants import of_huffman

    module, _, name = KINDS[kind][0].partition(":")
    opener: Opener = getattr(import_module(module), name)
    found = Found(kind, seed)
    with (
        TemporaryDirectory() as folder,
        opener(Path(folder), seed) as attempt,
        of_huffman("helpers_memory").peak_memory() as peak,
    ):
        begun, number = time.perf_counter(), first
        while found.seconds < seconds and number - first != most:
            began(number, found)
            try:
                accepted, took = timed(attempt, number)
                found.peak, before = max(found.peak, peak()), found.peak
                found.slowest = max(found.slowest, (took, number))
                if took > LIMIT:
                    found.fail(number, "time", f"it took {took:.1f} s")
                elif found.peak > MEMORY > before:
                    found.fail(number, "memory", f"{found.peak >> 20:,} MiB beyond those at the start")
                else:
                    found.accepted += accepted
            except Exception as error:
                found.fail(number, *explained(error))
            found.cases, found.seconds = found.cases + 1, time.perf_counter() - begun
            number += 1
    return found


def timed(attempt: Callable[[int], bool], number: int) -> tuple[bool, float]:
    """Whether a mutant is accepted, and in how many seconds; one that took long once is tried again."""
    begun = time.perf_counter()
    accepted = attempt(number)
    took = time.perf_counter() - begun
    if took > LIMIT:  # the machine may have been busy, or numba compiled a kernel
        begun = time.perf_counter()
        attempt(number)
        took = min(took, time.perf_counter() - begun)
    return accepted, took


def explained(error: BaseException) -> tuple[str, str]:
    """Where an exception comes from, and what it says there."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    frame = traceback.extract_tb(causes[-1].__traceback__)[-1]
    place = f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}"
    said = "; from ".join(f"{type(each).__name__}: {ascii(str(each))[:300]}" for each in causes)
    return f"{type(causes[-1]).__name__} {place}", f"{said} ({place})"


def watched(kind: str, seconds: float, seed: int, first: int = 0, most: int | None = None) -> Found:
    """The same in processes of their own, a new one after each that died, hung or took too much memory."""
    found, number, deaths = Found(kind, seed), first, 0
    with kernels_checked(kind == "blobs"):
        while found.seconds < seconds and deaths < MOST_DEATHS and (most is None or number - first < most):
            rest = None if most is None else first + most - number
            part, at, died = one_process(kind, seconds - found.seconds, seed, number, rest)
            found.add(part)
            if died is None:
                break
            found.fail(at, died, died)
            if at < number:
                break  # it did not get as far as a mutant
            number, deaths = at + 1, deaths + 1
    return found


def one_process(kind: str, seconds: float, seed: int, first: int, most: int | None) -> tuple[Found, int, str | None]:
    """What one process found, the number of its last mutant, and why it died, if it did."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    shared = context.Array("q", [first - 1, 0], lock=False)  # number of the mutant, and how many were accepted before
    words = (kind, seconds, seed, first, most)
    process = context.Process(target=child, args=(theirs, shared, KINDS[kind], *words), daemon=True)
    process.start()
    theirs.close()
    found, over, died = Found(kind, seed), False, None
    seen, since, start = first - 1, time.monotonic(), 0
    begun = since
    while not over and died is None:
        try:
            if ours.poll(0.5):
                found, over = ours.recv()
        except EOFError:
            process.join()
            code = process.exitcode or 0
            died = None if over else f"its process died of signal {-code}" if code < 0 else f"it ended with {code}"
            break
        if shared[0] != seen:
            if not start:
                start, begun = memory_of(process.pid), time.monotonic()
            seen, since = shared[0], time.monotonic()
        elif time.monotonic() - since > (SET_UP if seen < first else HANGING):
            died = f"it took more than {HANGING:.0f} s"
        if start and memory_of(process.pid) > start + MEMORY:
            died = f"it took more than {MEMORY >> 20:,} MiB"
    if process.is_alive() and died:
        process.kill()
    process.join()
    at, accepted = shared[:]
    if died:
        found.cases, found.accepted, found.seconds = at - first + 1, accepted, time.monotonic() - begun
    return found, at, died


def memory_of(process: int | None) -> int:
    """The bytes of a process in memory, 0 for one that is over."""
    import psutil  # type: ignore[import-untyped]

    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.Error:
        return 0


def child(
    results: Connection, shared: Any, place: tuple[str, float], kind: str, seconds: float, seed: int, first: int,
    most: int | None,
) -> None:  # fmt: skip
    """The process of a kind: it sends what it found every second, after a failure, and at its end."""
    import torch

    torch.set_num_threads(1)
    KINDS[kind] = place
    sent, told = time.monotonic(), 0

    def began(number: int, found: Found) -> None:
        nonlocal sent, told
        shared[:] = [number, found.accepted]
        if time.monotonic() - sent > 1 or found.failed > told:
            results.send((found, False))
            sent, told = time.monotonic(), found.failed

    results.send((measure(kind, seconds, seed, first, most, began), True))


@contextmanager
def kernels_checked(on: bool) -> Iterator[None]:
    """Processes that are started in here compile the codec's kernels with checks of all bounds, and keep none."""
    if not on:
        yield
        return
    before = dict(os.environ)
    with TemporaryDirectory() as cache:
        os.environ |= {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": cache}
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="for all kinds together; set-up is not counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, separated by commas")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--most", type=int, help="mutants of each kind at most")
    arguments = parser.parse_args()
    kinds = arguments.only.split(",")
    if unknown := set(kinds) - KINDS.keys():
        parser.error(f"--only {min(unknown)}: choose from {', '.join(KINDS)}")
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    whole, failed = sum(KINDS[kind][1] for kind in kinds), False
    for kind in kinds:
        seconds = arguments.seconds * KINDS[kind][1] / whole
        found = watched(kind, seconds, arguments.seed, arguments.first, arguments.most)
        print(found, flush=True)
        for said in list(found.failures.values())[:SHOWN]:
            print(f"  failure: {said}", flush=True)
        for said in list(found.crashes.values())[:SHOWN]:
            print(f"  crash of onnxruntime, not of makeweight: {said}", flush=True)
        failed = failed or bool(found.failures)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
