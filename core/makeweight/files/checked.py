"""Validated access to the values of an untrusted state, such as one from a checkpoint.

The core and the `load_state_dict` methods of plugins use these functions. All of them raise ValueError if a value is
missing, has another type or is out of range. When a run is resumed, the trainer adds the name of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

MOST = 1 << 53
"""upper bound of counts: many JSON readers represent larger integers inexactly"""


def checked_table(state: Any, name: str | None = None) -> dict[str, Any]:
    """The table `name` of a state, or the state itself if `name` is None."""
    found = state if name is None else _of(state, name)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{'the state' if name is None else repr(name)} is not a table")
    return found


def checked_keys(table: dict[str, Any], names: Collection[str]) -> None:
    """Raise ValueError unless the keys of a table are exactly `names`."""
    if odd := sorted(table.keys() ^ set(names)):
        raise ValueError(f"{odd[0]!r} is {'unknown' if odd[0] in table else 'missing'}")


def checked_number(state: Any, name: str, low: float = -1e300, high: float = 1e300) -> float:
    """The number `name` of a state, between `low` and `high`, as a float."""
    found = _of(state, name)
    if not isinstance(found, int | float) or isinstance(found, bool) or not low <= found <= high:
        raise ValueError(f"{name!r} is {_shown(found)}: expected a number from {low:g} to {high:g}")
    return float(found)


def checked_count(state: Any, name: str, most: int = MOST) -> int:
    """The integer `name` of a state, between 0 and `most`."""
    found = _of(state, name)
    if type(found) is not int or not 0 <= found <= most:
        raise ValueError(f"{name!r} is {_shown(found)}: expected a whole number from 0 to {most}")
    return found


def checked_tensor(
    state: Any, name: str, shape: Sequence[int | None] | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The tensor `name` of a state. Checks `shape`, in which None matches any size, and `dtype` if they are given."""
    found = _of(state, name)
    if not isinstance(found, Tensor):
        raise ValueError(f"{name!r} is {_shown(found)}: expected a tensor")
    if dtype is not None and found.dtype != dtype:
        raise ValueError(f"{name!r} has dtype {found.dtype}: expected {dtype}")
    if shape is not None and not (
        len(shape) == found.ndim and all(each in (None, size) for each, size in zip(shape, found.shape, strict=True))
    ):
        raise ValueError(f"{name!r} has shape {list(found.shape)}: expected {list(shape)}")
    return found


def checked_tensors(state: Any, name: str) -> dict[str, Tensor]:
    """The table `name` of a state, whose values must be tensors."""
    table = checked_table(state, name)
    return {key: checked_tensor(table, key) for key in table}


def _of(state: Any, name: str) -> Any:
    if name not in checked_table(state):
        raise ValueError(f"{name!r} is missing")
    return state[name]


def _shown(value: Any) -> str:
    plain = value is None or isinstance(value, bool | int | float)
    return (str(value) if plain and abs(value or 0) < MOST else "") or f"a {type(value).__name__}"
