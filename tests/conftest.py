"""What every test gets: nothing of one run in this process is left to the next."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("ACCELERATE_USE_CPU", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def state_of_its_own() -> Iterator[None]:
    """Runs of tests are not recorded among the user's own."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", folder)
        yield


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """Accelerate keeps the precision of the first Accelerator, and Python the modules that options named."""
    import torch
    from accelerate.state import AcceleratorState

    torch.set_num_threads(1)
    modules, path = set(sys.modules), list(sys.path)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("my_") or name == "stranger":
            del sys.modules[name]
