"""Whole files: unpack restores what pack compressed, in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from makeweight import Artifact, MakeweightError, load_tensors
from makeweight.commands.cli import main
from makeweight.files.artifact import write
from makeweight_huffman.packing import pack, unpack

MIB = 1 << 20


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]], metadata: object = None) -> None:
    """Write a file of any dtypes, in any order. `tensors`: dtype, shape and bytes by name."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def header_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def test_a_file_of_safetensors_own_writer_is_restored_exactly(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "b.weight": torch.randn(70, 300, generator=generator),
        "a.weight": torch.randn(300, 70, generator=generator).bfloat16(),
        "counts": torch.randint(-5, 5, (77,), generator=generator),
        "ümlaut\n": torch.zeros(5000),
        "scalar": torch.tensor(3.5),
        "nothing": torch.empty(0, 3),
        "flags": torch.rand(33, generator=generator) < 0.5,
    }
    save_file(tensors, tmp_path / "any.safetensors", metadata={"format": "pt"})
    pack(tmp_path / "any.safetensors", tmp_path / "packed.safetensors", threads=2)
    unpack(tmp_path / "packed.safetensors", tmp_path / "again.safetensors", threads=2)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "any.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "C64", "U16", "BOOL"])
def test_dtypes_that_torch_lacks_are_restored(dtype: str, tmp_path: Path) -> None:
    bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64, "U16": 16}.get(dtype, 8)
    data = np.random.default_rng(0).integers(0, 2, 8 * bits, np.uint8).tobytes()
    write_safetensors(tmp_path / "odd.safetensors", {"w": (dtype, [8, 8], data), "empty": (dtype, [0, 8], b"")})
    pack(tmp_path / "odd.safetensors", tmp_path / "packed.safetensors")
    unpack(tmp_path / "packed.safetensors", tmp_path / "again.safetensors")
    header = header_of(tmp_path / "again.safetensors")
    assert header["w"] == {"dtype": dtype, "shape": [8, 8], "data_offsets": [0, len(data)]}
    assert header["empty"] == {"dtype": dtype, "shape": [0, 8], "data_offsets": [len(data), len(data)]}
    assert (tmp_path / "again.safetensors").read_bytes().endswith(data)


def test_misaligned_tensors_are_reordered(tmp_path: Path) -> None:
    floats = np.arange(5, dtype="<f4")
    tensors = {"a": ("U8", [3], b"\1\2\3"), "b": ("F32", [5], floats.tobytes())}
    write_safetensors(tmp_path / "odd.safetensors", tensors)
    pack(tmp_path / "odd.safetensors", tmp_path / "packed.safetensors")
    unpack(tmp_path / "packed.safetensors", tmp_path / "again.safetensors")
    assert header_of(tmp_path / "again.safetensors")["b"]["data_offsets"] == [0, 20]
    again = load_file(tmp_path / "again.safetensors")
    assert torch.equal(again["b"], torch.from_numpy(floats))
    assert again["a"].tolist() == [1, 2, 3]


def test_an_export_keeps_its_record_when_it_is_packed(tmp_path: Path) -> None:
    write(Artifact({"w": torch.ones(1000)}, {"prune": {"sparsity": 0.5}}), tmp_path / "export.safetensors")
    pack(tmp_path / "export.safetensors", tmp_path / "packed.safetensors")
    record = json.loads(header_of(tmp_path / "packed.safetensors")["__metadata__"]["makeweight"][18:])
    assert record["prune"][1] == {"sparsity": 0.5}
    assert torch.equal(load_tensors(tmp_path / "packed.safetensors")["w"], torch.ones(1000))
    unpack(tmp_path / "packed.safetensors", tmp_path / "again.safetensors")
    assert torch.equal(load_file(tmp_path / "again.safetensors")["w"], torch.ones(1000))


W = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"w": {**W, "dtype": "F12"}}, "'w' has dtype 'F12'"),
        ({"w": {**W, "shape": [3]}}, "'w' has 8 bytes"),
        ({"w": {**W, "shape": [-2]}}, "not integers from 0"),
        ({"w": {**W, "shape": [True, 2]}}, "not integers from 0"),
        ({"w": {**W, "shape": [1] * 65}}, "at most 64"),
        ({"w": {**W, "shape": 2}}, "at most 64"),
        ({"w": {**W, "data_offsets": [8, 16]}}, "wrong offsets"),
        ({"w": {**W, "data_offsets": [0, 8, 8]}}, "not a pair"),
        ({"w": W, "v": W}, "wrong offsets"),
        ({"w": {**W, "shape": [1], "data_offsets": [0, 4]}}, "4 bytes belong to no tensor"),
        ({"w": {"dtype": "F32"}}, "not a safetensors header"),
        ({"w": 3}, "not a safetensors header"),
        ({"w\ud800": W}, "not a safetensors header"),
        ({"w": W, "__metadata__": {"a": 1}}, "not a table of strings"),
        ({"w": W, "__metadata__": [1]}, "not a table of strings"),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(header: dict[str, Any], words: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "bad.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(MakeweightError, match=words) as refused:
        pack(tmp_path / "bad.safetensors", tmp_path / "packed.safetensors")
    assert str(refused.value).startswith(f"{tmp_path}/bad.safetensors is damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"w": torch.ones(1000)}, tmp_path / "any.safetensors")
    (tmp_path / "file").write_text("")
    assert main(["pack", str(tmp_path / "any.safetensors"), "-o", str(tmp_path / "file" / "packed")]) == 1
    assert capsys.readouterr().err.startswith(f"trainer: error: {tmp_path}/file/packed cannot be written: ")
    assert main(["pack", str(tmp_path / "any.safetensors"), "--threads", "0"]) == 2
    assert capsys.readouterr().err == "trainer: error: --threads 0: expected 1 or more\n"


MEASURE = """
import sys
from pathlib import Path
from plugins.huffman.tests.helpers_memory import peak_memory
from makeweight.loading import open_any
from makeweight_huffman.packing import pack, unpack

small, large = map(Path, sys.argv[1:])
for source in (small, large):  # the small one compiles the kernels
    packed, again = source.with_suffix(".packed"), source.with_suffix(".again")
    for action in (lambda: pack(source, packed, 2), lambda: unpack(packed, again, 2),
                   lambda: [tensor.sum() for tensor in open_any(packed).tensors.values()]):
        with peak_memory() as peak:
            action()
        print(source.stem, peak())
"""


def test_files_are_packed_unpacked_and_read_in_the_memory_of_one_tensor(tmp_path: Path) -> None:
    tile = (np.random.default_rng(0).normal(0, 0.02, MIB).astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    for name, tensors, tiles in (("small", 1, 2), ("large", 6, 16)):  # the large file: 192 MiB in tensors of 32 MiB
        content = {f"layer{i}": ("BF16", [tiles, MIB], tile * tiles) for i in range(tensors)}
        write_safetensors(tmp_path / f"{name}.safetensors", content)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "small.safetensors", tmp_path / "large.safetensors"],
        cwd=Path(__file__).parents[3], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    packing, unpacking, looking = (int(line.split()[1]) for line in done.stdout.splitlines()[3:])
    assert packing < 32 * MIB + 32 * MIB  # the tensor, and the memory of its coding
    assert unpacking < 32 * MIB
    assert looking < 2 * 32 * MIB + 32 * MIB  # one tensor is in use while the next is decoded
    packed = tmp_path / "large.packed"
    assert 32 * MIB < packed.stat().st_size < 0.67 * 192 * MIB  # larger than the memory above
    assert (tmp_path / "large.again").stat().st_size > 192 * MIB
