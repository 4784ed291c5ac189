"""Heads as they are written: what is needed to build them again, in an export and in a plugin's state."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from makeweight import MakeweightError, UsageError
from makeweight.plugin import did_you_mean

from .exits import Exits
from .features import as_map, pooled
from .heads import Head
from .trace import Trace

MOST, WIDEST = 1 << 10, 1 << 20
"""heads and channels that a record may ask for at most"""
SPARE = 1 << 24
"""numbers that heads in a plugin's state may hold at most, beyond as many as the network has"""
ENTRY = ("section", "kind", "widths", "stride", "classes")


def described(section: str, head: Head) -> dict[str, Any]:
    """What is needed to build a head again, JSON."""
    return {"section": section, "kind": head.kind, "widths": head.widths, "stride": head.stride,
            "classes": head.classifier.out_features}  # fmt: skip


def checked(entries: Any, keys: Sequence[str] = ENTRY, fewest: int = 0) -> list[dict[str, Any]]:
    """Descriptions of heads that may come from a stranger.

    Raises MakeweightError for what is not as `described` gave it; `keys` are those of each.
    """
    if not isinstance(entries, list) or not fewest <= len(entries) <= MOST:
        raise MakeweightError("its record of exits is damaged: expected a list of them")
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != set(keys):
            raise MakeweightError(f"its record of exits is damaged: expected {', '.join(keys)} of each")
        widths = entry["widths"] if isinstance(entry["widths"], list) else []
        whole = [*widths, *(entry[key] for key in keys if key in ("number", "stride", "classes"))]
        sound = 2 <= len(widths) <= 64 and all(type(each) is int and 1 <= each <= WIDEST for each in whole)
        named = isinstance(entry["section"], str) and entry["kind"] in ("map", "vector")
        if not (sound and named and entry["stride"] <= 2):
            raise MakeweightError(f"its record of exits is damaged: {str(entry)[:200]}")
    return entries


def built(entries: Sequence[Mapping[str, Any]], device: str) -> list[Head]:
    """The heads of checked descriptions; on the device "meta" they take no memory."""
    with torch.device(device):
        return [Head(entry["kind"], entry["widths"], entry["classes"], entry["stride"]) for entry in entries]


def fitting_heads(entries: Sequence[Mapping[str, Any]], student: Trace) -> dict[str, Head]:
    """Newly made heads of checked descriptions by section; none where one of them does not fit the network's outputs.

    No memory is taken for more numbers than the network has, and `SPARE`.
    """
    numbers = sum(each.numel() for head in built(entries, "meta") for each in head.parameters())
    allowed = sum(each.numel() for each in student.model.parameters()) + SPARE
    if numbers > allowed or not all(_fits(entry, student) for entry in entries):
        return {}
    return dict(zip([entry["section"] for entry in entries], built(entries, "cpu"), strict=True))


def _fits(entry: Mapping[str, Any], student: Trace) -> bool:
    try:
        output = student.output_of(entry["section"])
    except UsageError:
        return False
    kind, width = ("map", as_map(output).shape[1]) if output.ndim == 4 else ("vector", pooled(output).shape[1])
    return (kind, width, student.classes) == (entry["kind"], entry["widths"][0], entry["classes"])


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
        record.append({"number": number} | described(section, head))
    return {"exits": record}


def read_exits(record: Any, tensors: MutableMapping[str, Tensor], model: nn.Module) -> Exits:
    """Build the heads that a record tells of, and take their tensors out of `tensors`.

    The file is not trusted: raises MakeweightError for a record that is not as `write_exits` wrote it, for tensors of
    other shapes, and for a section that the model has not. No memory is taken that the tensors do not fill.
    """
    entries = checked(record.get("exits") if isinstance(record, dict) else None, ("number", *ENTRY), fewest=1)
    known = dict(model.named_modules())
    heads = built(entries, "meta")
    for entry, head in zip(entries, heads, strict=True):
        number, section = entry["number"], entry["section"]
        if not section or section not in known:
            raise MakeweightError(f"exit {number} stands after {section!r}, which the model has not: "
                                  f"{did_you_mean(section, [name for name in known if name])}")  # fmt: skip
        _fill(head, number, tensors)
        head.eval().requires_grad_(False)
    return Exits(model, [entry["section"] for entry in entries], heads, [entry["number"] for entry in entries])


def _fill(head: Head, number: int, tensors: MutableMapping[str, Tensor]) -> None:
    """Move an exit's tensors from the file's into its head."""
    start = prefix(number)
    found = {name.removeprefix(start): tensors.pop(name) for name in list(tensors) if name.startswith(start)}
    expected = head.state_dict()
    for name, tensor in expected.items():
        if name not in found or found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise MakeweightError(f"{start}{name}: expected a {tensor.dtype} tensor of shape {list(tensor.shape)}")
    if unknown := [name for name in found if name not in expected]:
        raise MakeweightError(f"holds {start}{unknown[0]}, which its exit has not")
    head.load_state_dict(found, assign=True)
