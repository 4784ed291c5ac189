"""Measurement of memory, as counted by the system."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the peak memory of this process since now, in bytes above the present use."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    yield lambda: resident("VmHWM") - before


def resident(kind: str) -> int:
    """Resident memory in bytes: VmRSS now, VmHWM at the peak."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"/proc/self/status has no {kind}"
    return 1024 * int(found[1])
