"""Records of structure from a stranger's file: what is not as a plugin wrote it is refused before memory is taken."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from makeweight import Artifact, MakeweightError, Trainer, load
from makeweight.discovery import load_class
from makeweight.files.artifact import write
from makeweight.models.records import Record
from makeweight.training import checkpoint

from .helpers_structure import logits, net, run_of, strangers, trained

OPTIONS = {"halves": {"layers": "fc1", "batches": 1}}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from strangers(tmp_path_factory)


@dataclass
class Saved:
    """A run's last checkpoint, and what its export holds: a record of `halves`."""

    parts: dict[str, Any]
    tensors: dict[str, Tensor]
    record: dict[str, Any]
    logits: Tensor


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    out = tmp_path_factory.mktemp("saved")
    run = run_of(OPTIONS, out=out, epochs=1)
    run.fit()
    artifact = run.trainer.artifact()
    parts = checkpoint.newest(out / "checkpoints", pytest.fail)
    assert parts is not None
    return Saved(parts, dict(artifact.tensors), artifact.records[0].record, logits(run.model))


@contextmanager
def refused(said: str, megabytes: int = 64, seconds: float = 5.0) -> Iterator[None]:
    """A MakeweightError of one line, within these limits of memory (of Python, and of the process) and time."""
    tracemalloc.start()
    began, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with pytest.raises(MakeweightError, match=said) as raised:
            yield
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) <= 2100
        assert time.monotonic() - began < seconds
        assert tracemalloc.get_traced_memory()[1] < megabytes << 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < megabytes << 10
    finally:
        tracemalloc.stop()


def read_export(saved: Saved, records: list[Record], tensors: dict[str, Tensor], folder: Path) -> None:
    write(Artifact(tensors, records=records), folder / "model.safetensors")
    restored = load(folder / "model.safetensors", net(seed=1))
    assert torch.equal(logits(restored), saved.logits)


def read_checkpoint(saved: Saved, records: list[Record], tensors: dict[str, Tensor], folder: Path) -> None:
    structure = {"records": [list(each) for each in records], "began_with": 0}
    parts = saved.parts | {"structure": structure, "model": tensors}
    checkpoint.save(folder / "checkpoints", 4, parts)
    run = run_of(OPTIONS, out=folder, resume=True, epochs=1)
    run.fit()
    assert torch.equal(logits(run.model), saved.logits)


Reader = Callable[[Saved, list[Record], dict[str, Tensor], Path], None]
in_both = pytest.mark.parametrize("read", [read_export, read_checkpoint], ids=["an export", "a checkpoint"])


def of_halves(record: Any, version: str = "1.0") -> list[Record]:
    return [Record("halves", version, record)]


@in_both
def test_what_was_written_is_read(read: Reader, saved: Saved, tmp_path: Path) -> None:
    read(saved, of_halves(saved.record), saved.tensors, tmp_path)


def with_rank(record: dict[str, Any], rank: Any) -> dict[str, Any]:
    inputs, _, outputs, bias = record["layers"]["fc1"]
    return {"number": 1, "layers": {"fc1": [inputs, rank, outputs, bias]}}


@in_both
@pytest.mark.parametrize("rank", [10**9, 10**12, 10**30, 0, -1, True, 2.0, "6", None, [6], 7])
def test_a_rank_that_the_tensors_do_not_have_is_refused(rank: Any, read: Reader, saved: Saved, tmp_path: Path) -> None:
    with refused("halves|fc1"):
        read(saved, of_halves(with_rank(saved.record, rank)), saved.tensors, tmp_path)


@in_both
@pytest.mark.parametrize("rank", [10**9, 10**12, 10**30, -1, 7])
def test_and_by_the_core_where_a_plugin_checks_nothing(
    rank: int, read: Reader, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting(monkeypatch)
    with refused("halves|fc1"):
        read(saved, of_halves(with_rank(saved.record, rank)), saved.tensors, tmp_path)


def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[load_class("halves").__module__]
    monkeypatch.setattr(module, "checked", lambda model, record: record["layers"])


@in_both
def test_constant_buffers_that_no_tensor_fills_are_bounded(
    read: Reader, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[load_class("halves").__module__]
    rightly = module.checked

    def with_buffer(model: nn.Module, record: dict[str, Any]) -> Any:
        model.register_buffer("window", torch.zeros(record["window"]), persistent=False)
        return rightly(model, record)

    monkeypatch.setattr(module, "checked", with_buffer)
    read(saved, of_halves(saved.record | {"window": 1000}), saved.tensors, tmp_path / "small")
    for window in (10**7, 10**9, 10**12):
        with refused("buffers"):
            read(saved, of_halves(saved.record | {"window": window}), saved.tensors, tmp_path / str(window))


@in_both
@pytest.mark.parametrize("number", [None, True, 0, -1, 1.0, "1", [1]])
def test_a_record_without_a_whole_number_of_its_own_is_refused(
    number: Any, read: Reader, saved: Saved, tmp_path: Path
) -> None:
    record = saved.record | {"number": number}
    if number is None:
        del record["number"]
    with refused("number"):
        read(saved, of_halves(record), saved.tensors, tmp_path)


@in_both
def test_a_record_of_a_later_number_names_the_distribution_and_the_version_to_install(
    read: Reader, saved: Saved, tmp_path: Path
) -> None:
    with refused("pip install 'acme-halves>=7.3'"):
        read(saved, of_halves(saved.record | {"number": 2}, "7.3"), saved.tensors, tmp_path)


@in_both
def test_a_plugin_that_is_not_installed_is_named_with_its_version(read: Reader, saved: Saved, tmp_path: Path) -> None:
    with refused(r"'nobody' \(3\.1\).*not installed"):
        read(saved, [Record("nobody", "3.1", {"number": 1})], saved.tensors, tmp_path)


@in_both
@pytest.mark.parametrize("plugin", ["prune", "makeweight", "", "../x", "x" * 5000])
def test_a_name_that_is_no_plugin_with_structure_is_refused(
    plugin: str, read: Reader, saved: Saved, tmp_path: Path
) -> None:
    with refused("plugin|makeweight"):
        read(saved, [Record(plugin, "0.1.0", {"number": 1})], saved.tensors, tmp_path)


@in_both
def test_two_thousand_records_are_refused(read: Reader, saved: Saved, tmp_path: Path) -> None:
    with refused("1024 records"):
        read(saved, of_halves(saved.record) * 2000, saved.tensors, tmp_path)


FILLINGS = pytest.mark.parametrize("filling", ["a string", "lists"])


@FILLINGS
def test_a_record_of_20_megabytes_in_an_export_is_refused(filling: str, saved: Saved, tmp_path: Path) -> None:
    path, more = tmp_path / "model.safetensors", "x" * (20 << 20) if filling == "a string" else [[]] * (7 << 20)
    write(Artifact(saved.tensors, records=of_halves(saved.record | {"more": more})), path)
    with refused("bytes", megabytes=200, seconds=10):
        load(path, net())


@FILLINGS
def test_a_record_of_20_megabytes_in_a_checkpoint_is_refused(filling: str, saved: Saved, tmp_path: Path) -> None:
    structure = {"records": [["halves", "1.0", saved.record | {"more": "FILL"}]], "began_with": 0}
    path = checkpoint.save(tmp_path / "checkpoints", 4, saved.parts | {"structure": structure})
    text = (path / "structure.json").read_text()
    more = f'"{"x" * (20 << 20)}"' if filling == "a string" else f"[{'[],' * (7 << 20)}0]"
    (path / "structure.json").write_text(text.replace('"FILL"', more))
    hashes = json.loads((path / "manifest.json").read_text())
    hashes["structure.json"] = hashlib.sha256((path / "structure.json").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(hashes))
    run = run_of(OPTIONS, out=tmp_path, resume=True, epochs=1)
    with refused("bytes", megabytes=200, seconds=10):
        run.fit()


@in_both
@pytest.mark.parametrize("record", [
    {"number": 1}, {"number": 1, "layers": {}}, {"number": 1, "layers": []}, {"number": 1, "layers": {"fc1": 3}},
    {"number": 1, "layers": {"norm": [32, 2, 32, True]}}, {"number": 1, "layers": {"": [64, 6, 32, True]}},
    {"number": 1, "layers": {"fc1.weight": [64, 6, 32, True]}}, {"number": 1, "layers": {"fc1": [64, 6, 32]}},
    {"number": 1, "layers": {"fc1": [64, 6, 32, True], "fc9": [64, 6, 32, True]}},
    {"number": 1, "layers": {f"fc{number}": [64, 6, 32, True] for number in range(20_000)}},
], ids=lambda record: str(record)[:60])  # fmt: skip
def test_a_record_that_its_plugin_would_not_have_written_is_refused(
    record: dict[str, Any], read: Reader, saved: Saved, tmp_path: Path
) -> None:
    with refused("halves|fc1"):
        read(saved, of_halves(record), saved.tensors, tmp_path)


@in_both
def test_records_that_leave_tensors_over_or_ask_for_missing_ones_are_refused(
    read: Reader, saved: Saved, tmp_path: Path
) -> None:
    tensors, record = saved.tensors, of_halves(saved.record)
    missing = {name: each for name, each in tensors.items() if name != "fc1.0.weight"}
    with refused(r"fc1\.0\.weight"):
        read(saved, record, missing, tmp_path / "missing")
    with refused("more"):
        read(saved, record, tensors | {"more": torch.ones(1)}, tmp_path / "over")
    with refused("fc1"):
        read(saved, [], tensors, tmp_path / "none")
    with refused("fc1"):
        read(saved, record * 2, tensors, tmp_path / "twice")
    with refused("fc1"):
        read(saved, record, {**missing, "fc1.0.weight": tensors["fc1.0.weight"].T.contiguous()}, tmp_path / "turned")


@pytest.mark.parametrize("structure", [
    {}, {"records": []}, {"began_with": 0}, {"records": {}, "began_with": 0}, {"records": [], "began_with": "x"},
    {"records": [["halves"]], "began_with": 0}, {"records": [[1, 2, 3]], "began_with": 0},
    {"records": [None], "began_with": 0},
], ids=str)  # fmt: skip
def test_a_checkpoints_structure_that_is_none_is_refused(
    structure: dict[str, Any], saved: Saved, tmp_path: Path
) -> None:
    checkpoint.save(tmp_path / "checkpoints", 4, saved.parts | {"structure": structure})
    with refused("structure"):
        run_of(OPTIONS, out=tmp_path, resume=True, epochs=1).fit()


@pytest.mark.parametrize("began_with", [-1, 2, 10**9])
def test_a_checkpoint_that_began_with_more_records_than_it_has_is_refused(
    began_with: int, saved: Saved, tmp_path: Path
) -> None:
    structure = saved.parts["structure"] | {"began_with": began_with}
    checkpoint.save(tmp_path / "checkpoints", 4, saved.parts | {"structure": structure})
    with refused("structure"):
        run_of(OPTIONS, out=tmp_path, resume=True, epochs=1).fit()


def test_a_file_of_another_structure_than_the_models_is_refused(saved: Saved, tmp_path: Path) -> None:
    """The original model is asked for, or one that was loaded from a run before."""
    path = tmp_path / "model.safetensors"
    write(Artifact(saved.tensors, records=of_halves(saved.record)), path)
    assert torch.equal(logits(load(path, load(path, net(seed=2)))), saved.logits)
    other = trained({"halves": {"layers": "fc2", "batches": 1}}, epochs=1)
    with refused("expected the original model"):
        load(path, other.model)
    with refused("expected the original model"):
        Trainer.export(other, tmp_path / "other.safetensors")
        load(tmp_path / "other.safetensors", load(path, net()))


def test_the_same_table_of_another_plugin_is_another_structure(saved: Saved, tmp_path: Path) -> None:
    run = trained({"drop": {"pairs": {"fc2": "fc3"}}}, epochs=1)
    (record,) = run.artifact().records
    write(
        Artifact(dict(run.artifact().tensors), records=[Record("halves", "1.0", record.record)]),
        tmp_path / "x.safetensors",
    )
    with refused("expected the original model|halves"):
        load(tmp_path / "x.safetensors", run.model)
