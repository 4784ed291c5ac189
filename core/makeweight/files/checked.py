"""Values of a state that came from a checkpoint, which is untrusted: each is checked as it is taken.

`load_state_dict` and the core read a state through these. All raise ValueError, with what is wrong, for a value that
is missing or of another kind; while a run is resumed the trainer says in one line which checkpoint it stands in.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

MOST = 1 << 53
"""what a count is below: larger whole numbers are none of JSON's everywhere"""


def checked_table(state: Any, name: str | None = None) -> dict[str, Any]:
    """The table of that name in a state, or the state itself."""
    found = state if name is None else _of(state, name)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{'the state' if name is None else repr(name)} is no table")
    return found


def checked_keys(table: dict[str, Any], names: Collection[str]) -> None:
    """Raise unless a table has entries of these names, and no others."""
    if odd := sorted(table.keys() ^ set(names)):
        raise ValueError(f"{odd[0]!r} is {'unknown' if odd[0] in table else 'missing'}")


def checked_number(state: Any, name: str, low: float = -1e300, high: float = 1e300) -> float:
    """A number of `low` to `high`."""
    found = _of(state, name)
    if not isinstance(found, int | float) or isinstance(found, bool) or not low <= found <= high:
        raise ValueError(f"{name!r} is {_shown(found)}: expected a number of {low:g} to {high:g}")
    return float(found)


def checked_count(state: Any, name: str, most: int = MOST) -> int:
    """A whole number of 0 to `most`."""
    found = _of(state, name)
    if type(found) is not int or not 0 <= found <= most:
        raise ValueError(f"{name!r} is {_shown(found)}: expected a whole number of 0 to {most}")
    return found


def checked_tensor(
    state: Any, name: str, shape: Sequence[int | None] | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """A tensor of that shape (None in it stands for any extent) and dtype, where they are given."""
    found = _of(state, name)
    if not isinstance(found, Tensor):
        raise ValueError(f"{name!r} is {_shown(found)}: expected a tensor")
    if dtype is not None and found.dtype != dtype:
        raise ValueError(f"{name!r} is of {found.dtype}: expected {dtype}")
    if shape is not None and not (
        len(shape) == found.ndim and all(each in (None, size) for each, size in zip(shape, found.shape, strict=True))
    ):
        raise ValueError(f"{name!r} has shape {list(found.shape)}: expected {list(shape)}")
    return found


def checked_tensors(state: Any, name: str) -> dict[str, Tensor]:
    """A table of tensors by name."""
    table = checked_table(state, name)
    return {key: checked_tensor(table, key) for key in table}


def _of(state: Any, name: str) -> Any:
    if name not in checked_table(state):
        raise ValueError(f"{name!r} is missing")
    return state[name]


def _shown(value: Any) -> str:
    plain = value is None or isinstance(value, bool | int | float)
    return (str(value) if plain and abs(value or 0) < MOST else "") or f"a {type(value).__name__}"
