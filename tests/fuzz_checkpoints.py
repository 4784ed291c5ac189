"""Checkpoints whose parts are changed under right hashes: python -m tests.fuzz_checkpoints --seconds 60 --seed 0.

Each is resumed in this process. It must train on, or be refused by a MakeweightError; anything else ends the program
with the seed and the number of the mutant, which make it again: --seed 0 --first 4711.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import hashlib
import json
import random
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from makeweight import MakeweightError, Trainer
from makeweight.discovery import installed, load_class

CASES: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "prune": {"prune": {"sparsity": 0.5, "surgery": True, "end": 2, "every": 1}},
    "cluster": {"cluster": {"values": 4, "begin": 0, "reassign_every": 2}},
    "prune and cluster": {
        "prune": {"sparsity": 0.5, "end": 1, "every": 1},
        "cluster": {"values": {"first": 3, "last": 4}, "begin": 0.5},
    },
    "kd": {"kd": {"teacher": "initial"}},
    "kd and prune": {"kd": {}, "prune": {"sparsity": 0.5}},
    "qat": {"qat": {}},
}
"""plugins and their options"""
SECONDS = 30
"""that a mutant may take on a busy machine"""
STEP = 6
"""of the checkpoint, in the middle of the second epoch"""


class Tiny(nn.Module):
    """6 → 8 → 3, with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.norm(self.first(x)).relu())
        return output


def trainer(out: Path, plugins: dict[str, dict[str, Any]], optimizer: str, resume: bool) -> Trainer:
    torch.manual_seed(0)
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    made = {name: load_class(name)(**options) for name, options in plugins.items()}
    found = Trainer(Tiny(), (x, y), None, made, out=out, resume=resume, epochs=2, batch_size=16, lr=0.01,
                    optimizer=optimizer, checkpoint_every=3)  # fmt: skip
    found.journal.console.quiet = True
    found.journal.warn = lambda text: None  # type: ignore[method-assign]
    return found


@dataclass
class Files:
    """A checkpoint: the JSON and the tensors of each part."""

    trees: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]

    @classmethod
    def of(cls, folder: Path) -> Files:
        trees = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        return cls({name: tree for name, tree in trees.items() if name != "manifest"}, tensors)

    def write(self, folder: Path) -> None:
        """Write it with a manifest of its hashes."""
        folder.mkdir(parents=True)
        for name, tree in self.trees.items():
            (folder / f"{name}.json").write_text(json.dumps(tree).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000))
        for name, tensors in self.tensors.items():
            if tensors:
                save_file({key: each.clone().contiguous() for key, each in tensors.items()},
                          folder / f"{name}.safetensors")  # fmt: skip
        hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        (folder / "manifest.json").write_text(json.dumps(hashes))


DEEP = "a list in a list in a list"
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 1 << 31, 1 << 53, 1 << 63, -(1 << 70), 10**400, 0.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), "", "x", "1", "\x1b[31m\n", [], [0], [[]], [None], {}, {"a": 1}, {"": {}},
    {"$tensor": "x"}, {"$tensor": 3}, {"$tensor": []}, {"$items": []}, {"$items": [[0, 1]]}, {"$items": [[[], 1]]},
    {"$items": 3}, {"$items": [[-1, {}], [1.5, {}], ["x", {}]]}, DEEP, "x" * 100_000, list(range(1000)),
]  # fmt: skip
DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
          torch.complex64, torch.float8_e4m3fn]  # fmt: skip
NUMBERS = [float("nan"), float("inf"), -1.0, 0.0, 1.0, 1e38, 1e-45, 127.0]


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Each value in a tree, by the list or dict around it and its key there."""
    found: list[tuple[Any, Any]] = []
    rest = [tree]
    while rest:
        around = rest.pop()
        keys: Any = list(around) if isinstance(around, dict) else range(len(around))
        found += [(around, key) for key in keys]
        rest += [around[key] for key in keys if isinstance(around[key], dict | list)]
    return found


def change_value(files: Files, draw: random.Random) -> str:
    """Change one value of the JSON: another one, one of elsewhere, none, one more, another name, or a list around."""
    part = draw.choice(sorted(files.trees))
    found = places({part: files.trees[part]}) if draw.random() < 0.9 else places(files.trees)
    around, key = draw.choice(found)
    if around is not files.trees and key == part:
        around = files.trees
    kind = draw.choice(["another", "another", "another", "elsewhere", "none", "more", "renamed", "wrapped", "nearby"])
    old = around[key]
    if kind == "another":
        around[key] = copy.deepcopy(draw.choice(VALUES))
    elif kind == "elsewhere":
        other, name = draw.choice(places(files.trees))
        around[key] = copy.deepcopy(other[name])
    elif kind == "none":
        del around[key]
    elif kind == "more" and isinstance(old, dict | list):
        value = copy.deepcopy(draw.choice(VALUES))
        if isinstance(old, dict):
            old[draw.choice(["", "x", "$tensor", "$items", "first", "first.weight", "0", "task"])] = value
        else:
            old.insert(draw.randint(0, len(old)), value)
    elif kind == "renamed" and isinstance(around, dict):
        around[draw.choice([f"{key}x", "", "x", "first.weight", "last"])] = around.pop(key)
    elif kind == "nearby" and isinstance(old, int | float):
        around[key] = old + draw.choice([-1, 1, 0.5, -1000, 1000])
    else:
        around[key] = [old]
    return f"{part}: {kind} at {key!r}"


def change_tensor(files: Files, draw: random.Random) -> str:
    """Change one tensor: its dtype, its shape, its values, its name, or another's in its place."""
    part = draw.choice(sorted(name for name, each in files.tensors.items() if each) or [""])
    if not part:
        return change_value(files, draw)
    tensors = files.tensors[part]
    name = draw.choice(sorted(tensors))
    old = tensors[name]
    ways: dict[str, Callable[[], Tensor]] = {
        "dtype": lambda: (old.float() if old.dtype == torch.bool else old).to(draw.choice(DTYPES)),
        "flat": lambda: old.reshape(-1),
        "one more dimension": lambda: old[None],
        "transposed": lambda: old.T if old.ndim == 2 else old[..., None],
        "first row": lambda: old[:1] if old.ndim else old[None, None],
        "empty": lambda: old.reshape(-1)[:0],
        "doubled": lambda: torch.cat([old.reshape(-1)] * 2),
        "a scalar": lambda: old.new_ones(()),
        "one value": lambda: filled(old, draw),
        "all values": lambda: old.clone().fill_(draw.choice([0, 1, 100])),
        "another's": lambda: draw.choice([each for tensors in files.tensors.values() for each in tensors.values()]),
    }  # fmt: skip
    kind = draw.choice([*ways, "gone", "renamed", "one more"])
    if kind in ways:
        tensors[name] = ways[kind]()
    elif kind == "gone":
        del tensors[name]
    elif kind == "renamed":
        tensors[f"{name}x"] = tensors.pop(name)
    else:
        tensors["x"] = old
    return f"{part}: {kind} of {name!r}"


def filled(old: Tensor, draw: random.Random) -> Tensor:
    """A copy with another number in one place."""
    new = old.clone()
    if new.numel():
        number = draw.choice(NUMBERS if new.is_floating_point() else [-1, 0, 1, 7, 2**31, 2**62])
        flat = new.reshape(-1)
        if new.dtype != torch.bool and not new.is_floating_point():
            number = min(number, torch.iinfo(new.dtype).max)
        flat[draw.randrange(new.numel())] = number
    return new


def mutant(files: Files, draw: random.Random) -> tuple[Files, list[str]]:
    """A checkpoint with one change to three, and what they are."""
    changed = copy.deepcopy(files)
    said = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        if not changed.trees:
            break
        said.append((change_tensor if draw.random() < 0.4 else change_value)(changed, draw))
    return changed, said


def resumed(files: Files, out: Path, plugins: dict[str, dict[str, Any]], optimizer: str) -> bool:
    """Resume from a checkpoint: whether it was taken. Raises what is no MakeweightError."""
    files.write(out / "checkpoints" / f"step-{STEP:09d}")
    begun = time.perf_counter()
    try:
        trainer(out, plugins, optimizer, resume=True).fit()
    except MakeweightError as error:
        if not str(error) or "\n" in str(error):
            raise AssertionError(f"an error of several lines: {error!r}") from error
        return False
    finally:
        if (took := time.perf_counter() - begun) > SECONDS:
            raise AssertionError(f"it took {took:.0f} s")
    return True


def originals(folder: Path, cases: list[str]) -> Iterator[tuple[str, str, Files]]:
    """The checkpoint of each case and optimizer."""
    for case in cases:
        for optimizer in ("sgd", "adamw"):
            out = folder / f"{case} {optimizer}"
            trainer(out, CASES[case], optimizer, resume=False).fit()
            found = Files.of(out / "checkpoints" / f"step-{STEP:09d}")
            if not resumed(found, folder / f"{case} {optimizer} again", CASES[case], optimizer):
                raise AssertionError(f"the checkpoint of {case!r} is refused as it is")
            yield case, optimizer, found


def fuzz(
    seconds: float, seed: int, first: int = 0, cases: list[str] | None = None, most: int | None = None
) -> tuple[int, int]:
    """Resume mutants for so long: how many there were, and how many were taken. Raises AssertionError at the first that
    fails."""  # fmt: skip
    there = [name for name, plugins in CASES.items() if plugins.keys() <= installed().keys()]
    with TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        folder = Path(name)
        found = list(originals(folder, cases or there))
        begun, number, taken = time.perf_counter(), first, 0
        while time.perf_counter() - begun < seconds and number - first != most:
            case, optimizer, files = found[number % len(found)]
            changed, said = mutant(files, random.Random(f"{seed} {number}"))
            with TemporaryDirectory(dir=folder) as out:
                try:
                    taken += resumed(changed, Path(out), CASES[case], optimizer)
                except Exception as error:
                    raise AssertionError(f"seed {seed}, mutant {number} of {case}, {optimizer}: {said}") from error
            number += 1
    return number - first, taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--cases", nargs="*", choices=list(CASES))
    arguments = parser.parse_args()
    faulthandler.dump_traceback_later(arguments.seconds + 600, exit=True)
    torch.set_num_threads(1)
    try:
        done, taken = fuzz(arguments.seconds, arguments.seed, arguments.first, arguments.cases)
    except AssertionError:
        traceback.print_exc()
        raise SystemExit(1) from None
    print(f"{done:,} mutants, {taken:,} trained on, the others refused")


if __name__ == "__main__":
    main()
