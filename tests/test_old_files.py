"""Files of makeweight 0.1.0 are read, and files without structure are written as it wrote them.

`data/0.1.0` holds exports that its commit 2d5a201 wrote after four epochs on the digits, the SHA-256 of each tensor
that it decoded from them, and the logits of ten digits that it computed with each.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from makeweight import Trainer, load, load_tensors
from makeweight.discovery import load_class
from makeweight.files.artifact import read, write
from makeweight.loading import attach, load_plain
from makeweight.plugin_manager import Plugins

from .helpers_structure import digits, eval_data, made, strangers, train_data

FOLDER = Path(__file__).parent / "data" / "0.1.0"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from strangers(tmp_path_factory)


def small(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10)
    return nn.Sequential(nn.Flatten(), *layers)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_of_the_first_version_is_decoded_exactly_and_computes_what_it_did(name: str) -> None:
    path = FOLDER / f"{name}.safetensors"
    tensors = load_tensors(path)
    found = {
        each: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for each, tensor in tensors.items()
    }
    assert found == EXPECTED[name]["sha256"]
    with torch.no_grad():
        logits = load(path, small()).eval()(digits()[0][1000:1010])
    assert torch.allclose(logits, torch.tensor(EXPECTED[name]["logits"]), atol=2e-5)


def test_the_exits_of_a_file_of_the_first_version_still_run() -> None:
    model = small()
    path = FOLDER / "kd_exits.safetensors"
    artifact = load_plain(path, model)
    attach(artifact, model, path)
    ways = Plugins({"kd": load_class("kd")()}).call("kd", "on_evaluate", artifact=artifact, model=model)
    assert len(ways) >= 2
    for way in ways.values():
        with torch.no_grad():
            assert way.eval()(digits()[0][1000:1010]).shape == (10, 10)


@pytest.mark.parametrize("name", EXPECTED)
def test_training_goes_on_from_a_file_of_the_first_version(name: str) -> None:
    model = small()
    load_plain(FOLDER / f"{name}.safetensors", model)
    run = Trainer(model, train_data(), eval_data(), epochs=1, batch_size=128, lr=1e-3)
    run.journal.console.quiet = True
    assert run.fit()["accuracy"] > 0.2


RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "prune_huffman": {"prune": {"sparsity": 0.7, "every": 1}, "huffman": {}},
    "qat": {"qat": {"weights": 4}},
    "kd_exits": {"kd": {"exits": "all"}},
}


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def form(value: Any) -> Any:
    """JSON with its numbers left out: what a later run may change."""
    if isinstance(value, dict):
        return {name: form(each) for name, each in value.items()}
    if isinstance(value, list):
        return [form(each) for each in value]
    return type(value).__name__ if isinstance(value, int | float) else value


def described(path: Path) -> tuple[str, Any]:
    """The metadata's text up to the plugins' table, without the checksum's digits; and the table without versions."""
    text = header(path)["__metadata__"]["makeweight"]
    assert re.fullmatch(r"1 [0-9a-f]{16} \{.*\}", text)
    assert list(header(path)["__metadata__"]) == ["makeweight"]
    table = json.loads(text[19:])
    assert text[19:] == json.dumps(table, separators=(",", ":"))
    return text[:2], {name: form(record) for name, (_, record) in table.items()}


@pytest.mark.parametrize("name", RUNS)
def test_a_file_without_structure_is_written_in_the_form_of_the_first_version(name: str, tmp_path: Path) -> None:
    run = Trainer(small(0), train_data(), eval_data(), made(RUNS[name]), epochs=4, batch_size=64, lr=0.2)
    run.journal.console.quiet = True
    run.fit()
    path, old = tmp_path / "model.safetensors", FOLDER / f"{name}.safetensors"
    run.export(path)
    assert described(path) == described(old)
    facts = [{tensor: (each["dtype"], each["shape"]) for tensor, each in header(which).items() if "dtype" in each}
             for which in (path, old)]  # fmt: skip
    if name != "prune_huffman":  # the length of a code is the weights'
        assert facts[0] == facts[1]
        assert list(facts[0]) == list(facts[1])


@pytest.mark.parametrize("name", ["plain", "prune_huffman"])
def test_a_file_of_the_first_version_that_is_read_and_written_again_has_its_bytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(read(FOLDER / f"{name}.safetensors"), path)
    again, old = path.read_bytes(), (FOLDER / f"{name}.safetensors").read_bytes()
    if name == "plain":
        assert again == old
    assert len(again) == len(old)


def test_a_file_with_structure_names_makeweight_first_which_the_first_version_refuses_as_a_plugin(
    tmp_path: Path,
) -> None:
    """It said: `model.safetensors needs plugin 'makeweight' (0.2.0), which is not installed`."""
    run = Trainer(small(), train_data(), None, made({"halves": {"layers": "1"}, "prune": {"every": 1}, "huffman": {}}),
                  epochs=1)  # fmt: skip
    run.journal.console.quiet = True
    run.fit()
    run.export(tmp_path / "model.safetensors")
    table = json.loads(header(tmp_path / "model.safetensors")["__metadata__"]["makeweight"][18:])
    assert next(iter(table)) == "makeweight"
    version, entry = table["makeweight"]
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", version)
    assert set(entry) == {"number", "structure"}
    assert [each[:2] for each in entry["structure"]] == [["halves", "1.0"]]
