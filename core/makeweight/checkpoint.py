"""Checkpoints that are whole or not there, and nothing in them is unpickled.

A checkpoint is a folder `step-<n>` with a `.json` and a `.safetensors` file for each part, and `manifest.json`, the
hashes of the rest. It is written aside, synced, and renamed; only then are older ones removed, two being kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .errors import MakeweightError
from .files import sync

KEPT = 2


def split_tensors(tree: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """A tree of JSON values and tensors as JSON; the tensors go into `tensors`, and stand as {"$tensor": name}.

    Dicts with keys that JSON has not (the optimizer's are numbers) stand as {"$items": [[key, value], …]}.
    """
    if isinstance(tree, torch.Tensor):
        tensors[path] = tree.detach().cpu().contiguous().clone()
        return {"$tensor": path}
    if isinstance(tree, dict):
        pairs = [(key, split_tensors(value, tensors, f"{path}/{key}")) for key, value in tree.items()]
        plain = all(isinstance(key, str) and not key.startswith("$") for key in tree)
        return dict(pairs) if plain else {"$items": [[key, value] for key, value in pairs]}
    if isinstance(tree, (list, tuple)):
        return [split_tensors(value, tensors, f"{path}/{index}") for index, value in enumerate(tree)]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"state {path or 'of a plugin'} holds a {type(tree).__name__}: expected JSON values and tensors")


def join_tensors(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """What `split_tensors` was given."""
    if isinstance(tree, dict):
        if "$tensor" in tree:
            return tensors[tree["$tensor"]]
        if "$items" in tree:
            return {key: join_tensors(value, tensors) for key, value in tree["$items"]}
        return {key: join_tensors(value, tensors) for key, value in tree.items()}
    return [join_tensors(value, tensors) for value in tree] if isinstance(tree, list) else tree


def save(root: Path, step: int, parts: dict[str, Any]) -> Path:
    """Write a checkpoint of a run directory's `checkpoints` folder; each part is a tree of JSON values and tensors."""
    final = root / f"step-{step:09d}"
    aside = root / f".{final.name}.tmp"
    if final.exists():  # of before a resume, and training is exact: it holds the same, unless it is damaged
        try:
            load(final)
            return final
        except MakeweightError:
            shutil.rmtree(final)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, tree in parts.items():
        tensors: dict[str, torch.Tensor] = {}
        (aside / f"{name}.json").write_text(json.dumps(split_tensors(tree, tensors)))
        save_file(tensors, aside / f"{name}.safetensors")
    hashes = {path.name: _hash(path) for path in sorted(aside.iterdir())}
    (aside / "manifest.json").write_text(json.dumps(hashes, indent=1))
    for path in [*aside.iterdir(), aside]:
        sync(path)
    aside.rename(final)
    sync(root)
    for old in [*sorted(root.glob("step-*"))[:-KEPT], *root.glob(".step-*")]:
        doomed = old if old.name.startswith(".") else old.rename(root / f".{old.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
    return final


def load(path: Path) -> dict[str, Any]:
    """The parts of a checkpoint. Raises MakeweightError, with the file's name, where it is not as it was written."""
    try:
        hashes = json.loads((path / "manifest.json").read_text())
        present = {each.name for each in path.iterdir()} - {"manifest.json"}
        if odd := sorted(present ^ set(hashes)):
            raise MakeweightError(f"checkpoint {path} is damaged: {odd[0]} is missing, in the folder or the manifest")
        for name, expected in hashes.items():
            if _hash(path / name) != expected:
                raise MakeweightError(f"checkpoint {path} is damaged: {name} does not match the manifest")
        names = [name.removesuffix(".json") for name in hashes if name.endswith(".json")]
        return {
            name: join_tensors(json.loads((path / f"{name}.json").read_text()), load_file(path / f"{name}.safetensors"))
            for name in names
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise MakeweightError(f"checkpoint {path} is damaged: {type(error).__name__}: {error}") from error


def newest(root: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, None where there is none. A damaged one is passed over and `warn` told.

    Raises MakeweightError when there are checkpoints and none of them is whole.
    """
    found = sorted(root.glob("step-*"), reverse=True)
    for path in found:
        try:
            return load(path)
        except MakeweightError as error:
            warn(f"{error}; falling back to the one before")
    if found:
        raise MakeweightError(f"no checkpoint in {root} is whole: remove the folder to start anew")
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
