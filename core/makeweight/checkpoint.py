"""Checkpoints that are whole or not there, and nothing in them is unpickled.

A checkpoint is a folder `step-<n>`, `step-<n>-stage-<k>` in the stages after the first, with a `.json` file for each
part, a `.safetensors` file where it has tensors, and `manifest.json`, the hashes of the rest. One more is written where
a stage's end changed the structure, with `-end` after its name. So the names sort by step and stage. A checkpoint is
written aside, synced, and renamed; only then are older ones removed.
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

from .errors import MakeweightError
from .files import UnwritableError, aside_name, sync

KEPT = 2
LARGEST_JSON = 17 << 20
"""bytes of a part without its tensors at most: as objects JSON may take forty times its bytes"""


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


def copied(tree: Any) -> Any:
    """A tree of JSON values and tensors as a checkpoint would give it back, the tensors copied to the CPU."""
    tensors: dict[str, torch.Tensor] = {}
    return join_tensors(json.loads(json.dumps(split_tensors(tree, tensors))), tensors)


def save(root: Path, step: int, parts: dict[str, Any], stage: int = 0, ended: bool = False,
         kept: int = KEPT) -> Path:  # fmt: skip
    """Write a checkpoint of a run directory's `checkpoints` folder; each part is a tree of JSON values and tensors.

    Raises MakeweightError where it cannot be written; the checkpoints before it are kept then.
    """
    final = root / "-".join(
        [f"step-{step:09d}", *([f"stage-{stage:03d}"] if stage else []), *(["end"] if ended else [])]
    )
    aside = aside_name(final)
    try:
        if final.exists():  # of before a resume, and training is exact: it holds the same, unless it is damaged
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
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666  # that of the umask; safetensors' files are their owner's alone
    for path in folder.iterdir():
        path.chmod(mode)
        sync(path)
    sync(folder)


def remove_leftovers(root: Path) -> None:
    """Remove the checkpoints that were being written or removed when a run was killed."""
    for left in root.glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


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
        for name in names:
            if (size := (path / f"{name}.json").stat().st_size) > LARGEST_JSON:
                raise MakeweightError(f"checkpoint {path} is damaged: {name}.json has {size:,} bytes")
        return {name: join_tensors(json.loads((path / f"{name}.json").read_text()), _tensors(path, name, hashes))
                for name in names}  # fmt: skip
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


def _tensors(path: Path, name: str, hashes: dict[str, str]) -> dict[str, torch.Tensor]:
    """The tensors of a part, which has a file of them only if it has any."""
    file = f"{name}.safetensors"
    return load_file(path / file) if file in hashes else {}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
