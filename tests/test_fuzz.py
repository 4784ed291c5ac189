"""A short run of each fuzzer; `make fuzz` runs them for long. And what the command does with a mutant that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fuzz import KINDS, main, measure, watched

pytestmark = pytest.mark.slow  # each fuzzer runs for a second

SECONDS, SEED = 1.0, 3
BROKEN = """
import os, time
from contextlib import contextmanager

@contextmanager
def broken(folder, seed):
    def attempt(number):
        if number == 2:
            raise KeyError("no such\\nthing")
        if number == 4:
            os.kill(os.getpid(), 11)
        return number % 2 == 1
    yield attempt
"""


@pytest.fixture(autouse=True)
def found_from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of the fuzzers import `tests` and `plugins`, which `pytest` alone does not put on the path."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"onnx"}))
def test_mutants_are_accepted_or_refused_in_a_line_soon_and_in_bounded_memory(kind: str) -> None:
    found = measure(kind, SECONDS, SEED)
    assert found.failures == {}
    assert 0 < found.accepted < found.cases


def test_mutants_of_onnx_files_are_refused_in_a_line_or_crash_a_process_of_their_own() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    found = watched("onnx", SECONDS, SEED)
    assert found.failures == {}
    assert 0 < found.accepted < found.cases


def test_a_failing_mutant_is_told_with_the_words_that_repeat_it_and_the_others_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(KINDS, "broken", ("my_broken:broken", 1.0))
    monkeypatch.setattr("sys.argv", ["fuzz", "--only", "broken", "--seed", "7", "--most", "9"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert " ".join(shown.split()).startswith("broken 9 cases ")
    assert "4 accepted 3 refused 2 failed" in " ".join(shown.split())
    assert "--only broken --seed 7 --first 2 --most 1: KeyError: " in shown
    assert "--only broken --seed 7 --first 4 --most 1: its process died of signal 11" in shown
