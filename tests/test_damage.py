"""A file that is not whole, or not ours, is refused with its name and what is wrong.

A damaged checkpoint is passed over for the one before. Nothing that is read is unpickled.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from makeweight import Artifact, MakeweightError, load, load_tensors
from makeweight.commands.cli import main
from makeweight.files import artifact
from makeweight.training import checkpoint

from .helpers import assert_same_bits, assert_same_run, everything_below, here, trainer

RUN = ["--plugins", "prune,huffman", "--epochs", "2", "--prune.end", "1", "--seed", "3"]

FORMAT = "is not a safetensors file"
OURS = "is not a makeweight export"
CHECKSUM = "is damaged: its checksum does not match"
HEADER = "is damaged: its header"
ENTRY = "its entry 'makeweight' is invalid"


class Tiny(torch.nn.Module):
    """A model whose export is small enough to flip each of its bits."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 4)


def tiny_export(path: Path, huffman: bool) -> dict[str, torch.Tensor]:
    """Write a small export with some zeros in it; the tensors that are in it."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=generator)
    tensors = {"fc.weight": torch.where(weight.abs() < 0.7, 0, weight), "fc.bias": torch.ones(4)}
    made = Artifact(dict(tensors))
    if huffman:
        from makeweight_huffman import Huffman

        Huffman().on_export(artifact=made)
    artifact.write(made, path)
    return tensors


@pytest.fixture(params=[True, False], ids=["huffman", "plain"])
def export(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_export(tmp_path / "tiny.safetensors", request.param)
    return tmp_path / "tiny.safetensors"


def header(text: str, length: int) -> bytes:
    """A safetensors file of nothing but a header."""
    return struct.pack("<Q", length) + text.encode().ljust(length)


def refused(path: Path) -> str:
    """The line with which a file is refused, by all that reads exports."""
    with pytest.raises(MakeweightError) as tensors:
        load_tensors(path)
    with pytest.raises(MakeweightError) as model:
        load(path, Tiny())
    assert str(tensors.value) == str(model.value)
    line = str(tensors.value)
    assert path.name in line
    assert "\n" not in line
    return line


@pytest.mark.parametrize("huffman", [True, False], ids=["huffman", "plain"])
def test_an_export_gives_its_tensors_back(huffman: bool, tmp_path: Path) -> None:
    tensors = tiny_export(tmp_path / "tiny.safetensors", huffman)
    assert_same_bits(dict(sorted(load_tensors(tmp_path / "tiny.safetensors").items())), dict(sorted(tensors.items())))
    model = Tiny()
    assert load(tmp_path / "tiny.safetensors", model) is model
    assert torch.equal(model.fc.weight, tensors["fc.weight"])


def test_every_single_flipped_bit_is_refused(export: Path) -> None:
    whole = export.read_bytes()
    assert len(whole) < 2000
    passed = []
    for position in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            export.write_bytes(flipped)
            try:
                load_tensors(export)
                passed.append((position, bit))
            except MakeweightError as error:
                if export.name not in str(error):
                    passed.append((position, bit))
    assert passed == []


def test_every_length_it_is_cut_to_is_refused(export: Path) -> None:
    whole = export.read_bytes()
    for length in range(len(whole)):
        export.write_bytes(whole[:length])
        with pytest.raises(MakeweightError, match=export.name):
            load_tensors(export)


def test_bytes_added_at_the_end_are_refused(export: Path) -> None:
    whole = export.read_bytes()
    for more in (b"\0", b"\n", bytes(1000), whole):
        export.write_bytes(whole + more)
        assert "damaged" in refused(export)


def test_bytes_exchanged_or_zeroed_are_refused(export: Path) -> None:
    whole = export.read_bytes()
    lines = []
    for start in range(0, len(whole) - 8, 8):
        zeroed, exchanged, other = bytearray(whole), bytearray(whole), len(whole) - 8 - start
        zeroed[start : start + 8] = bytes(8)
        exchanged[start : start + 8], exchanged[other : other + 8] = whole[other : other + 8], whole[start : start + 8]
        for changed in (zeroed, exchanged):
            if changed != whole:
                export.write_bytes(changed)
                lines.append(refused(export))
    damaged = [line for line in lines if "is damaged: its checksum does not match" in line]
    assert len(damaged) > 40
    assert all("is not a" in line or "is damaged" in line for line in lines)  # where its header was hit


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", FORMAT, id="empty"),
        pytest.param(b"\0", FORMAT, id="a byte"),
        pytest.param(bytes(8), FORMAT, id="8 zeros"),
        pytest.param(bytes(100), FORMAT, id="100 zeros"),
        pytest.param(b"not a safetensors file, but a text of some length\n" * 20, FORMAT, id="text"),
        pytest.param(b"PK\3\4" * 50, FORMAT, id="zip"),
        pytest.param(struct.pack("<Q", 1 << 62) + b"{}", FORMAT, id="header of 4 EiB"),
        pytest.param(struct.pack("<Q", 2) + b"{}", OURS, id="no tensor"),
        pytest.param(struct.pack("<Q", 4) + b"null", FORMAT, id="null"),
        pytest.param(struct.pack("<Q", 3) + b"{]}", HEADER, id="no JSON"),
        pytest.param(struct.pack("<Q", 60_000) + b"[" * 60_000, FORMAT, id="deep lists"),
        pytest.param(struct.pack("<Q", 60_005) + b'{"a":' + b"[" * 60_000, HEADER, id="deep lists in a table"),
        pytest.param(header('{"__metadata__":{"makeweight":"1 00000', 40), HEADER, id="checksum cut"),
        pytest.param(header('{"__metadata__":{"makeweight":"1 0000000000000000 {}"}}', 64), CHECKSUM,
                     id="checksum of zeros"),
    ],
)  # fmt: skip
def test_what_is_no_export_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    assert said in refused(path)


def test_a_safetensors_file_of_others_is_refused_as_not_ours(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.ones(4, 6)}, tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    assert "not a makeweight export" in refused(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    ("text", "said"),
    [("", ENTRY), ("1", ENTRY), ("2 0123456789abcdef {}", ENTRY), ("1 0123456789abcdef {}", CHECKSUM),
     ("1 0123456789abcdef", CHECKSUM)],
)  # fmt: skip
def test_a_foreign_file_that_says_makeweight_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"fc.weight": torch.ones(4, 6)}, path, metadata={"makeweight": text})
    assert said in refused(path)


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "nowhere.safetensors")
    assert "directory" in refused(tmp_path)


def resealed(path: Path, record: str) -> None:
    """Write an export whose record is this text, with a checksum that is right."""
    text = f"1 {'0' * 16} {record}"
    save_file({"fc.weight": torch.ones(4, 6), "fc.bias": torch.ones(4)}, path, metadata={"makeweight": text})
    artifact.seal(path)


def test_a_file_that_names_a_plugin_which_is_not_installed_says_which(tmp_path: Path) -> None:
    resealed(tmp_path / "theirs.safetensors", '{"os": ["1.2", {}], "subprocess:run": ["1", {}]}')
    line = refused(tmp_path / "theirs.safetensors")
    assert "'os'" in line
    assert "1.2" in line
    assert "not installed" in line


@pytest.mark.parametrize(
    "record",
    ["", "null", "[]", "3", '"x"', "{", "[" * 5000, '{"huffman": 3}', '{"huffman": []}', '{"huffman": ["1"]}',
     '{"huffman": ["1", {}, 2]}', '{"huffman": ["1", {}]}', '{"prune": ["1", {"a": 1}]}', '{"huffman": null}',
     '{"huffman": ["1", []]}', '{"core": ["1", {}]}'],
)  # fmt: skip
def test_a_record_that_no_plugin_wrote_is_refused_or_does_nothing(record: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    resealed(path, record)
    try:
        tensors = load_tensors(path)
    except MakeweightError as error:
        assert "odd.safetensors" in str(error)  # noqa: PT017
    else:
        assert set(tensors) == {"fc.weight", "fc.bias"}


def test_an_export_of_another_model_is_refused(export: Path) -> None:
    with pytest.raises(MakeweightError, match=r"tiny.safetensors.*'weight'"):
        load(export, torch.nn.Linear(6, 4))
    model = Tiny()
    model.fc = torch.nn.Linear(7, 4)
    with pytest.raises(MakeweightError, match=r"tiny.safetensors.*'fc.weight'.*\[4, 6\].*\[4, 7\]"):
        load(export, model)


def test_a_model_is_left_as_it_was_by_a_file_that_is_refused(export: Path) -> None:
    export.write_bytes(export.read_bytes()[:-1])
    model = Tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(MakeweightError):
        load(export, model)
    assert_same_bits(model.state_dict(), before)


# The commands.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, two checkpoints in it."""
    folder = tmp_path_factory.mktemp("damage")
    trainer(folder, *RUN, "--out", "run")
    assert [path.name for path in sorted((folder / "run" / "checkpoints").iterdir())] == [
        "step-000000010", "step-000000020",
    ]  # fmt: skip
    return folder / "run"


def copied(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run")


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


COMMANDS = [["inspect"], ["evaluate"], ["unpack"], ["pack"], ["--out", "new", "--weights"],
            ["--out", "new", "--plugins", "kd", "--kd.teacher"]]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=["inspect", "evaluate", "unpack", "pack", "weights", "teacher"])
def test_a_command_says_in_one_line_which_file_is_damaged(
    words: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = (run / "model.safetensors").read_bytes()
    shutil.copy(run / "config.yaml", tmp_path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for content in (bytes(flipped), whole[: len(whole) // 2], whole[:5], b"", b"text\n" * 100):
        (tmp_path / "bad.safetensors").write_bytes(content)
        assert main([*words, "bad.safetensors"]) == 1
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1
        assert "bad.safetensors" in shown.err
        assert "Traceback" not in shown.err
        assert everything_below(tmp_path) == ["bad.safetensors", "config.yaml"]


@pytest.mark.parametrize("words", [["evaluate"], ["unpack"]], ids=["evaluate", "unpack"])
def test_a_command_that_needs_an_export_says_of_a_foreign_file_that_it_is_not_ours(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.ones(3)}, tmp_path / "foreign.safetensors")
    assert main([*words, "foreign.safetensors"]) == 1
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "foreign.safetensors is not a makeweight export" in shown.err


def test_a_damaged_export_ends_a_process_of_its_own_with_1_and_one_line(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "model.safetensors", tmp_path / "bad.safetensors")
    flip(tmp_path / "bad.safetensors", -1)
    done = trainer(tmp_path, "inspect", "bad.safetensors", code=1)
    assert done.stderr == "trainer: error: bad.safetensors is damaged: its checksum does not match its content\n"


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "config.yaml"])
def test_a_damaged_file_of_a_run_is_named_by_the_report(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = copied(run, tmp_path)
    for content in (b"{", bytes(range(256)), b"[1]", b"3\n"):
        (broken / name).write_bytes(content)
        code = here("report", broken)
        shown = capsys.readouterr()
        if name == "config.yaml" and code == 0:
            continue  # it is only shown
        assert code == 1, content
        assert shown.err.count("\n") == 1
        assert str(broken) in shown.err


# Checkpoints.

PARTS = ["attached", "auxiliary", "began", "masks", "model", "optimizer", "plugins", "scaler", "structure", "sums",
         "trainer"]  # fmt: skip
FILES = [*(f"{part}.json" for part in PARTS), "manifest.json",
         *(f"{part}.safetensors" for part in ("masks", "model", "optimizer"))]  # fmt: skip


def read_newest(root: Path) -> tuple[dict[str, Any] | None, list[str]]:
    said: list[str] = []
    return checkpoint.newest(root, said.append), said


def test_a_checkpoint_is_made_of_these_files(run: Path) -> None:
    assert everything_below(run / "checkpoints" / "step-000000020") == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_newest_checkpoint_with_a_damaged_file_falls_back_to_the_one_before_and_says_so(
    name: str, run: Path, tmp_path: Path
) -> None:
    root = copied(run, tmp_path) / "checkpoints"
    victim = root / "step-000000020" / name
    whole = victim.read_bytes()

    def fell_back() -> None:
        found, said = read_newest(root)
        assert found is not None
        assert found["trainer"]["step"] == 10
        assert len(said) == 1
        assert "step-000000020" in said[0]
        assert "damaged" in said[0]
        assert name == "manifest.json" or name in said[0]

    for position in {0, len(whole) // 2, len(whole) - 1}:
        flip(victim, position, position % 8)
        fell_back()
        victim.write_bytes(whole)
    for length in (0, len(whole) // 2, len(whole) - 1):
        victim.write_bytes(whole[:length])
        fell_back()
    victim.unlink()
    fell_back()
    victim.write_bytes(whole)
    found, said = read_newest(root)
    assert found is not None
    assert (found["trainer"]["step"], said) == (20, [])


def test_a_checkpoint_with_a_file_too_many_or_a_folder_that_is_a_file_is_passed_over(run: Path, tmp_path: Path) -> None:
    root = copied(run, tmp_path) / "checkpoints"
    (root / "step-000000020" / "more.json").write_text("{}")
    (root / "step-000000030").mkdir()
    (root / "step-000000040").write_text("no folder")
    found, said = read_newest(root)
    assert found is not None
    assert found["trainer"]["step"] == 10
    assert [line.count(name) > 0 for line, name in zip(said, ("040", "030", "020"), strict=True)] == [True] * 3


@pytest.mark.parametrize(
    "manifest",
    ["[]", "null", "3", "{}", '{"../../model.safetensors": "x"}', '{"trainer.json": 3}', "[" * 5000, '{"a": {"b": 1}}'],
)
def test_a_manifest_that_nobody_wrote_is_refused(manifest: str, run: Path, tmp_path: Path) -> None:
    path = copied(run, tmp_path) / "checkpoints" / "step-000000020"
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(MakeweightError, match="step-000000020"):
        checkpoint.load(path)


def test_resuming_over_a_damaged_newest_checkpoint_says_so_and_ends_as_an_unbroken_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = copied(run, tmp_path)
    flip(broken / "checkpoints" / "step-000000020" / "model.safetensors", -3)
    (broken / "model.safetensors").unlink()
    assert here("--resume", "--out", broken) == 0
    shown = capsys.readouterr()
    assert "step-000000020" in shown.err
    assert "model.safetensors does not match" in shown.err
    assert "falling back" in shown.err
    assert_same_run(run, broken)
    assert read_newest(broken / "checkpoints")[1] == []


def test_resuming_where_every_checkpoint_is_damaged_is_an_error_that_says_which(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = copied(run, tmp_path)
    for path in (broken / "checkpoints").iterdir():
        flip(path / "optimizer.safetensors", -1)
    before = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    assert here("--resume", "--out", broken) == 1
    shown = capsys.readouterr()
    assert "step-000000010 is damaged: optimizer.safetensors" in shown.err
    assert "step-000000020 is damaged: optimizer.safetensors" in shown.err
    assert f"no checkpoint in {broken / 'checkpoints'} is intact" in shown.err
    assert "Traceback" not in shown.err
    assert {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()} == before


def sealed(path: Path, parts: dict[str, Any]) -> None:
    """Write a checkpoint that is whole, whatever is in it."""
    shutil.rmtree(path, ignore_errors=True)
    checkpoint.save(path.parent, int(path.name.removeprefix("step-")), parts)


@pytest.mark.parametrize("part", ["trainer", "model", "optimizer", "plugins", "auxiliary"])
def test_a_whole_checkpoint_with_something_else_in_it_is_refused_in_one_line(
    part: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = copied(run, tmp_path)
    shutil.rmtree(broken / "checkpoints" / "step-000000010")
    path = broken / "checkpoints" / "step-000000020"
    parts = checkpoint.load(path)
    strange = {"strange": torch.ones(2)}
    parts[part] = {"prune": strange} if part == "plugins" else strange
    sealed(path, parts)
    code = here("--resume", "--out", broken)
    shown = capsys.readouterr()
    assert code == 1
    assert shown.err.count("\n") == 1
    assert "checkpoint" in shown.err


# Nothing is unpickled.


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpickled(*arguments: object, **named: object) -> None:
        raise AssertionError("something was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (pickle, "_Unpickler"),
                         (torch, "load"), (torch.serialization, "load")):  # fmt: skip
        monkeypatch.setattr(module, name, unpickled)


@pytest.mark.usefixtures("no_pickle")
def test_nothing_is_unpickled_by_reading_an_export(run: Path, export: Path) -> None:
    assert len(load_tensors(run / "model.safetensors")) == 6
    load(export, Tiny())


@pytest.mark.usefixtures("no_pickle")
def test_nothing_is_unpickled_by_resuming_or_starting_from_weights(run: Path, tmp_path: Path) -> None:
    broken = copied(run, tmp_path)
    shutil.rmtree(broken / "checkpoints" / "step-000000020")
    assert here("--resume", "--out", broken) == 0
    assert_same_run(run, broken)
    words = ["--epochs", 1, "--plugins", "kd", "--kd.teacher", run / "model.safetensors"]
    assert here(*words, "--weights", run / "model.safetensors", "--out", tmp_path / "new") == 0


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


def test_a_pickle_in_place_of_an_export_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.safetensors").write_bytes(pickle.dumps(Bomb()))
    buffer = io.BytesIO()
    torch.save({"fc.weight": Bomb()}, buffer)
    (tmp_path / "bomb.pt").write_bytes(buffer.getvalue())
    for name in ("bomb.safetensors", "bomb.pt"):
        refused(tmp_path / name)
        assert here("--weights", name) == (2 if name.endswith(".pt") else 1)
        assert name in capsys.readouterr().err
    assert everything_below(tmp_path) == ["bomb.pt", "bomb.safetensors"]


def test_the_header_of_an_export_is_plain_json(run: Path) -> None:
    content = (run / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    version, checksum, record = header["__metadata__"]["makeweight"].split(" ", 2)
    assert version == "1"
    assert len(checksum) == 16
    assert list(json.loads(record)) == ["huffman"]
