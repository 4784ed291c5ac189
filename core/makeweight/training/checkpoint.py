"""Writes and reads checkpoint folders. Writing is atomic, and reading uses no pickle.

A checkpoint is a folder `step-<n>`, or `step-<n>-stage-<k>` after the first stage, in which names sort by step and
stage. If the structure changed at the end of a stage, another checkpoint with the suffix `-end` follows. Each part is a
`.json` file, plus a `.safetensors` file if it has tensors. `manifest.json` holds the SHA-256 hashes of the other files.
A checkpoint is written under a temporary name, synced and renamed. Only then are old checkpoints removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import MakeweightError
from ..files.writing import UnwritableError, aside_name, sync

KEPT = 2
LARGEST_JSON = 17 << 20
"""maximum size of a `.json` file in bytes; parsed JSON may take 40 times its size in memory"""


def split_tensors(tree: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """Convert a tree of JSON values and tensors to JSON values. Tensors are copied to `tensors` under their path.

    A tensor becomes {"$tensor": path}. A dict with keys that JSON does not allow, such as the optimizer's integers,
    becomes {"$items": [[key, value], …]}. Raises TypeError for other values.
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
    """The inverse of `split_tensors`."""
    if isinstance(tree, dict):
        if "$tensor" in tree:
            return tensors[tree["$tensor"]]
        if "$items" in tree:
            return {key: join_tensors(value, tensors) for key, value in tree["$items"]}
        return {key: join_tensors(value, tensors) for key, value in tree.items()}
    return [join_tensors(value, tensors) for value in tree] if isinstance(tree, list) else tree


def copied(tree: Any) -> Any:
    """A copy of a tree of JSON values and tensors as read from a checkpoint: tuples as lists, tensors on the CPU."""
    tensors: dict[str, torch.Tensor] = {}
    return join_tensors(json.loads(json.dumps(split_tensors(tree, tensors))), tensors)


def save(root: Path, step: int, parts: dict[str, Any], stage: int = 0, ended: bool = False,
         kept: int = KEPT) -> Path:  # fmt: skip
    """Write a checkpoint to the folder `root` and keep the newest `kept` ones. Returns its path.

    Each part is a tree of JSON values and tensors. Raises MakeweightError if the checkpoint cannot be written; the
    existing checkpoints are kept in that case.
    """
    final = root / "-".join(
        [f"step-{step:09d}", *([f"stage-{stage:03d}"] if stage else []), *(["end"] if ended else [])]
    )
    aside = aside_name(final)
    try:
        if final.exists():  # written before the run was resumed: training is exact, so an intact one has equal content
            try:
                load(final)
                return final
            except MakeweightError:
                shutil.rmtree(final)
        root.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        _write(aside, parts)
        aside.rename(final)
        sync(root)
    except (OSError, SafetensorError) as error:
        raise UnwritableError(final, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in sorted(root.glob("step-*"))[:-kept]:
        with suppress(OSError):
            old.rename(aside_name(old))
    remove_leftovers(root)
    return final


def _write(folder: Path, parts: dict[str, Any]) -> None:
    for name, tree in parts.items():
        tensors: dict[str, torch.Tensor] = {}
        (folder / f"{name}.json").write_text(json.dumps(split_tensors(tree, tensors)))
        if tensors:
            save_file(tensors, folder / f"{name}.safetensors")
    hashes = {path.name: _hash(path) for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps(hashes, indent=1))
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666  # from the umask; safetensors ignores it and uses 0o600
    for path in folder.iterdir():
        path.chmod(mode)
        sync(path)
    sync(folder)


def remove_leftovers(root: Path) -> None:
    """Remove temporary folders that a killed run left."""
    for left in root.glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def load(path: Path) -> dict[str, Any]:
    """The parts of a checkpoint by name. Raises MakeweightError with the name of the damaged file."""
    try:
        hashes = json.loads((path / "manifest.json").read_text())
        present = {each.name for each in path.iterdir()} - {"manifest.json"}
        if odd := sorted(present ^ set(hashes)):
            raise MakeweightError(f"checkpoint {path} is damaged: {odd[0]} is missing from the folder or the manifest")
        for name, expected in hashes.items():
            if _hash(path / name) != expected:
                raise MakeweightError(f"checkpoint {path} is damaged: {name} does not match the manifest")
        names = [name.removesuffix(".json") for name in hashes if name.endswith(".json")]
        for name in names:
            if (size := (path / f"{name}.json").stat().st_size) > LARGEST_JSON:
                raise MakeweightError(f"checkpoint {path} is damaged: {name}.json has {size:,} bytes")
        return {name: join_tensors(json.loads((path / f"{name}.json").read_text()), _tensors(path, name, hashes))
                for name in names}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise MakeweightError(f"checkpoint {path} is damaged: {type(error).__name__}: {error}") from error


def newest(root: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The parts of the newest intact checkpoint, or None if there are no checkpoints. Calls `warn` for damaged ones.

    Raises MakeweightError if there are checkpoints and all are damaged.
    """
    found = sorted(root.glob("step-*"), reverse=True)
    for path in found:
        try:
            return load(path)
        except MakeweightError as error:
            warn(f"{error}; falling back to the previous one")
    if found:
        raise MakeweightError(f"no checkpoint in {root} is intact: remove the folder to start a new run")
    return None


def _tensors(path: Path, name: str, hashes: dict[str, str]) -> dict[str, torch.Tensor]:
    """The tensors of a part; a part without tensors has no `.safetensors` file."""
    file = f"{name}.safetensors"
    return load_file(path / file) if file in hashes else {}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
