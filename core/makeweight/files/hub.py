"""Safetensors files of a repository of the Hugging Face hub, downloaded once into its cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..references import import_installed
from .untrusted import read_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_PARTS = 1000
"""maximum number of files of a model in parts"""
LARGEST_INDEX = 16 << 20
"""maximum size of the index of a model in parts, in bytes"""


def download(repository: str, revision: str | None = None) -> list[Path]:
    """The files of a repository's model: `model.safetensors`, or its parts if it has an index of them.

    Raises UsageError, in one line, if huggingface_hub is not installed, and for every failure of the download.
    """
    what = f"weights hf:{repository}{f'@{revision}' if revision else ''}"
    try:
        hub: Any = import_installed("huggingface_hub")
    except ImportError as error:
        raise UsageError(f"{what}: needs huggingface_hub: pip install 'makeweight[hf]'") from error

    def fetch(name: str) -> Path:
        return Path(hub.hf_hub_download(repository, name, revision=revision))

    try:
        return [fetch(WHOLE)]
    except hub.errors.EntryNotFoundError as error:  # without a network, also for a file that is not in the cache
        reason = _first_line(error)
    except Exception as error:
        raise UsageError(f"{what}: cannot be downloaded: {_first_line(error)}") from error
    try:
        index = fetch(INDEX)
    except Exception as error:
        raise UsageError(f"{what}: {WHOLE} cannot be downloaded: {reason}") from error
    try:
        return [fetch(name) for name in parts(index)]
    except Exception as error:
        raise UsageError(f"{what}: a part of the model cannot be downloaded: {_first_line(error)}") from error


def parts(index: Path) -> list[str]:
    """The names of the files in an index. Raises ValueError if it is damaged."""
    table = read_json(index, LARGEST_INDEX)
    files = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ValueError(f"{INDEX} has no table 'weight_map'")
    names = sorted(set(files.values()))
    if len(names) > MOST_PARTS or not all(re.fullmatch(r"\w[\w.-]*\.safetensors", name) for name in names):
        raise ValueError(f"{INDEX}: expected at most {MOST_PARTS} names of .safetensors files in the same folder")
    return names


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
