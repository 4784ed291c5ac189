"""numba: a cache that cannot be written, and a coder that does not run, which is detected before training."""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from numba.core.dispatcher import Dispatcher
from safetensors.torch import save_file

import makeweight_huffman
from makeweight.testing import TWO_BATCHES, run_trainer
from makeweight_huffman.plugin import Huffman

Made = Callable[[], Dispatcher]

KERNEL = """
from makeweight_huffman.codec.compiled import kernel
@kernel
def doubled(value):
    return 2 * value
"""
TOO_NEW = "Numba needs NumPy 2.3 or less. Got NumPy 2.9."


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A function that compiles a kernel anew, as a new process does."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "my_kernel.py"
    path.write_text(KERNEL)

    def make() -> Dispatcher:
        spec = importlib.util.spec_from_file_location("my_kernel", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.doubled(21) == 42
        result: Dispatcher = module.doubled
        return result

    return make


def cached(tmp_path: Path) -> list[Path]:
    """The files in numba's cache: an index and machine code."""
    return sorted((tmp_path / "cache").glob("*/*.nb?"))


def from_cache(kernel: Dispatcher) -> bool:
    return sum(kernel.stats.cache_hits.values()) == 1


@contextmanager
def no_room() -> Iterator[None]:
    """Files can be created but not filled, as on a full disk or with an exhausted quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_machine_code_is_kept_for_the_next_process(made: Made, tmp_path: Path) -> None:
    assert not from_cache(made())
    assert len(cached(tmp_path)) == 2
    assert from_cache(made())


def test_a_kernel_runs_where_the_disk_of_the_cache_is_full(made: Made, tmp_path: Path) -> None:
    with no_room():
        made()
    assert cached(tmp_path) == []


@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_damaged_cache_is_written_anew(kept: int, made: Made, tmp_path: Path) -> None:
    made()
    for path in cached(tmp_path):
        path.write_bytes(path.read_bytes()[:kept])
    with no_room():
        assert not from_cache(made())
    assert not from_cache(made())
    assert from_cache(made())


def test_a_run_exports_where_no_folder_can_be_written_to(tmp_path: Path) -> None:
    """A file takes the name of numba's cache folder, so that root cannot write there either."""
    copy = tmp_path / "copy" / "makeweight_huffman"
    source = Path(makeweight_huffman.__file__).parent
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "codec" / "__pycache__").touch()
    nowhere: dict[str, Any] = dict.fromkeys(["HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"], "/proc/nowhere")
    state: dict[str, Any] = {
        "XDG_STATE_HOME": str(tmp_path),
        "MPLCONFIGDIR": str(tmp_path),
        "PYTHONPATH": str(copy.parent),
    }
    run_trainer(["--plugins", "huffman", *TWO_BATCHES, "--out", "run"], tmp_path, **nowhere, **state)
    export = json.loads((tmp_path / "run" / "summary.json").read_text())["export"]
    assert export["bytes"] < export["plain_bytes"]
    assert (copy / "codec" / "__pycache__").read_bytes() == b""


# A coder that does not run


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, Any]:
    """Environment variables of a process in which numba cannot be imported."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "numba.py").write_text(f"raise ImportError({TOO_NEW!r})")
    return {"PYTHONPATH": str(tmp_path / "broken")}


def refused(words: list[str], cwd: Path, environment: dict[str, Any], code: int = 2) -> str:
    """Run a command that must fail with one line, and return that line."""
    errors = run_trainer(words, cwd, code=code, **environment).stderr
    assert errors.count("\n") == 1, errors
    return errors


def test_a_dry_run_describes_the_plugin() -> None:
    assert Huffman().on_check() == "codes the whole export"


def test_the_check_leaves_random_numbers_as_they_are() -> None:
    state = torch.get_rng_state()
    Huffman().on_check()
    assert torch.equal(torch.get_rng_state(), state)


def test_numba_that_cannot_be_imported_is_found_before_training(broken: dict[str, Any], tmp_path: Path) -> None:
    said = refused(["--plugins", "prune,huffman", "--out", "run"], tmp_path, broken)
    expected = f"huffman: the coder does not run here (ImportError: {TOO_NEW}): try 'pip install --upgrade numba'"
    assert said.startswith(f"trainer: error: {expected}")
    assert not (tmp_path / "run").exists()


def test_kernels_that_cannot_be_compiled_are_found_before_training(tmp_path: Path) -> None:
    words = ["--plugins", "huffman", "--out", "run"]
    errors = run_trainer(words, tmp_path, code=2, NUMBA_DISABLE_JIT="1").stderr
    assert "the coder does not run here (NotImplementedError: " in errors.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_wrong_round_trip_is_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from makeweight import UsageError
    from makeweight_huffman import tensors

    monkeypatch.setattr(tensors, "decode_tensors", lambda blob, located: {"trial": torch.zeros(8, 16)})
    with pytest.raises(UsageError, match="a decoded tensor differs"):
        Huffman().on_check()


def test_help_needs_no_numba(broken: dict[str, Any], tmp_path: Path) -> None:
    assert "plugin huffman" in run_trainer(["--plugins", "huffman", "--help"], tmp_path, **broken).stdout


def test_verbs_and_reading_without_numba_are_refused_in_one_line(broken: dict[str, Any], tmp_path: Path) -> None:
    from makeweight_huffman.packing import pack

    save_file({"weight": torch.ones(3)}, tmp_path / "plain.safetensors")
    pack(tmp_path / "plain.safetensors", tmp_path / "packed.safetensors")
    for verb, name, code in [("pack", "plain", 2), ("unpack", "packed", 2), ("inspect", "packed", 1)]:
        assert TOO_NEW in refused([verb, f"{name}.safetensors"], tmp_path, broken, code)
