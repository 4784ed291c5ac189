"""How much memory something takes, as the system counts it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """What is entered tells the bytes that this process has held at most since then, beyond what it held then."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    yield lambda: resident("VmHWM") - before


def resident(kind: str) -> int:
    """Bytes in memory: VmRSS, now; VmHWM, at most."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"the system tells no {kind}"
    return 1024 * int(found[1])
