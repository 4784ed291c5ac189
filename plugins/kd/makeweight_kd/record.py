"""Exits in an export: the heads' tensors under a prefix, and what is needed to build the heads again."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from makeweight import MakeweightError
from makeweight.errors import did_you_mean

from .exits import Exits
from .heads import Head

MOST, WIDEST = 1 << 10, 1 << 20
"""exits and channels that a record may ask for at most"""


def prefix(number: int) -> str:
    """What the names of the tensors of an exit begin with; exits are counted from 1."""
    return f"kd.exit{number}."


def write_exits(tensors: MutableMapping[str, Tensor], exits: Mapping[int, tuple[str, Head]]) -> dict[str, Any]:
    """Add the heads' tensors to those of the model, and return the record, JSON; `exits` by number: section and head.

    Raises MakeweightError where the model has tensors of such names.
    """
    record = []
    for number, (section, head) in exits.items():
        if clash := [name for name in tensors if name.startswith(prefix(number))]:
            raise MakeweightError(f"kd.exits: the model has a tensor {clash[0]!r}: exit {number} would have its name")
        for name, tensor in head.state_dict().items():
            tensors[prefix(number) + name] = tensor.detach().cpu().clone()
        record.append({"number": number, "section": section, "kind": head.kind, "widths": head.widths,
                       "stride": head.stride, "classes": head.classifier.out_features})  # fmt: skip
    return {"exits": record}


def read_exits(record: Any, tensors: MutableMapping[str, Tensor], model: nn.Module) -> Exits:
    """Build the heads that a record tells of, and take their tensors out of `tensors`.

    The file is not trusted: raises MakeweightError for a record that is not as `write_exits` wrote it, for tensors of
    other shapes, and for a section that the model has not. No memory is taken that the tensors do not fill.
    """
    entries = record.get("exits") if isinstance(record, dict) else None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST:
        raise MakeweightError("its record of exits is damaged: expected a list of them")
    known = dict(model.named_modules())
    sections, heads, numbers = [], [], []
    for entry in entries:
        number, section, kind, widths, stride, classes = _checked(entry)
        if not section or section not in known:
            raise MakeweightError(f"exit {number} stands after {section!r}, which the model has not: "
                                  f"{did_you_mean(section, [name for name in known if name])}")  # fmt: skip
        with torch.device("meta"):
            head = Head(kind, widths, classes, stride)
        _fill(head, number, tensors)
        sections.append(section)
        heads.append(head.eval().requires_grad_(False))
        numbers.append(number)
    return Exits(model, sections, heads, numbers)


def _checked(entry: Any) -> tuple[int, str, str, list[int], int, int]:
    keys = ("number", "section", "kind", "widths", "stride", "classes")
    if not isinstance(entry, dict) or set(entry) != set(keys):
        raise MakeweightError(f"its record of exits is damaged: expected {', '.join(keys)} of each")
    number, section, kind, widths, stride, classes = (entry[key] for key in keys)
    whole = [number, stride, classes, *(widths if isinstance(widths, list) else [None])]
    if not all(type(each) is int and 1 <= each <= WIDEST for each in whole) or not 2 <= len(widths) <= 64:
        raise MakeweightError(f"its record of exits is damaged: {str(entry)[:200]}")
    if not isinstance(section, str) or kind not in ("map", "vector") or stride > 2:
        raise MakeweightError(f"its record of exits is damaged: {str(entry)[:200]}")
    return number, section, kind, widths, stride, classes


def _fill(head: Head, number: int, tensors: MutableMapping[str, Tensor]) -> None:
    """Move an exit's tensors from the file's into its head."""
    start = prefix(number)
    found = {name.removeprefix(start): tensors.pop(name) for name in list(tensors) if name.startswith(start)}
    _check_shapes(head.state_dict(), found, start)
    head.load_state_dict(found, assign=True)


def _check_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], start: str) -> None:
    for name, tensor in expected.items():
        if name not in found or found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise MakeweightError(f"{start}{name}: expected a {tensor.dtype} tensor of shape {list(tensor.shape)}")
    if unknown := [name for name in found if name not in expected]:
        raise MakeweightError(f"holds {start}{unknown[0]}, which its exit has not")
