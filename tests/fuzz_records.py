"""Mutants of records of structure, in exports and in checkpoints, under right checksums."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from makeweight import load
from makeweight.files.artifact import ZEROS, seal
from makeweight.files.safetensors_file import write_in_pieces
from makeweight.files.tensor_bytes import bytes_of, layout_of
from makeweight.models.records import as_json
from makeweight.models.state import untied

from .fuzz_checkpoints import STEP, Files, mutant, resumed, trainer
from .helpers_mutants import Attempt, accepts, as_text, drawn, plugins_found_once
from .helpers_structure import THIRD_PARTY, logits, net, trained

DECIDED: dict[str, dict[str, Any]] = {"halves": {"layers": "fc1", "batches": 1}, "drop": {"pairs": {"fc2": "fc3"}}}
RESUMED: dict[str, dict[str, Any]] = {"halves": {"layers": "first", "batches": 1, "energy": 0.2}}
ENTRY_POINTS = "[makeweight]\nhalves = acme_halves.halves:Halves\ndrop = acme_halves.drop:Drop\n"


@contextmanager
def records(folder: Path, seed: int) -> Iterator[Attempt]:
    """Exports of a network that two plugins changed; every eighth is a checkpoint."""
    with stand_in(folder / "site"), plugins_found_once():
        artifact = trained(DECIDED, epochs=1).artifact()
        entry = {"makeweight": ["0.2.0", {"number": 1, "structure": as_json(artifact.records)}]}
        export = Files({"entry": entry}, {"model": untied(dict(artifact.tensors))})
        trainer(folder / "run", RESUMED, "sgd", resume=False).fit()
        saved = Files.of(folder / "run" / "checkpoints" / f"step-{STEP:09d}")
        assert saved.trees["structure"]["records"], "the run decided on no structure"
        part = Files({"structure": saved.trees["structure"]}, {"model": saved.tensors["model"]})

        def attempt(number: int) -> bool:
            draw = drawn(seed, number)
            if number % 8:
                return is_loaded(mutant(export, draw)[0], folder / "mutant.safetensors")
            changed, _ = mutant(part, draw)
            with TemporaryDirectory(dir=folder) as out:
                trees = {name: tree for name, tree in saved.trees.items() if name != "structure"} | changed.trees
                return resumed(Files(trees, saved.tensors | changed.tensors), Path(out), RESUMED, "sgd")

        yield attempt


def is_loaded(export: Files, path: Path) -> bool:
    """Whether an export is accepted; the network then gives logits."""
    layouts = [layout_of(name, tensor) for name, tensor in export.tensors["model"].items()]
    data = [bytes_of(tensor) for tensor in export.tensors["model"].values()]
    text = f"1 {ZEROS.decode()} {as_text(export.trees.get('entry', {}))}"
    write_in_pieces(path, layouts, {"makeweight": text}, data)
    seal(path)
    model = net()
    accepted = accepts(lambda: load(path, model), said=path.name)
    if accepted:
        assert logits(model).shape == (100, 10)
    return accepted


@contextmanager
def stand_in(site: Path) -> Iterator[None]:
    """The plugins of `third_party/halves` as if pip had installed them, in this process."""
    about = site / "acme_halves-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-halves\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    before, path = modules(), list(sys.path)
    sys.path[:0] = [os.fspath(site), os.fspath(THIRD_PARTY / "halves")]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        for name in modules():
            del sys.modules[name]
        sys.modules.update(before)


def modules() -> dict[str, Any]:
    return {name: each for name, each in sys.modules.items() if name.partition(".")[0] == "acme_halves"}
