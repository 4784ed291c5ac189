"""Descriptions of heads: written into exports and the plugin's state, validated and rebuilt when read."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from makeweight.plugin import MakeweightError, UsageError, did_you_mean

from .exits import Exits
from .features import as_map, pooled
from .heads import Head
from .trace import Trace

MOST, WIDEST = 1 << 10, 1 << 20
"""upper bounds of a record: heads, and channels of a layer"""
SPARE = 1 << 24
"""heads restored from a plugin's state may have this many parameters more than the network"""
ENTRY = ("section", "kind", "widths", "stride", "classes")


def describe(section: str, head: Head) -> dict[str, Any]:
    """The description of a head, as JSON values: enough to rebuild it."""
    return {"section": section, "kind": head.kind, "widths": head.widths, "stride": head.stride,
            "classes": head.classifier.out_features}  # fmt: skip


def validate(entries: Any, keys: Sequence[str] = ENTRY, fewest: int = 0) -> list[dict[str, Any]]:
    """Validate untrusted descriptions of heads, and return them.

    There must be `fewest` or more, each with exactly these keys. Raises MakeweightError for values that `describe`
    cannot give.
    """
    if not isinstance(entries, list) or not fewest <= len(entries) <= MOST:
        raise MakeweightError(f"its record of exits is damaged: expected a list of {fewest} to {MOST} exits")
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != set(keys):
            raise MakeweightError(f"its record of exits is damaged: expected {', '.join(keys)} for each exit")
        widths = entry["widths"] if isinstance(entry["widths"], list) else []
        whole = [*widths, *(entry[key] for key in keys if key in ("number", "stride", "classes"))]
        sound = 2 <= len(widths) <= 64 and all(type(each) is int and 1 <= each <= WIDEST for each in whole)
        named = isinstance(entry["section"], str) and entry["kind"] in ("map", "vector")
        if not (sound and named and entry["stride"] <= 2):
            raise MakeweightError(f"its record of exits is damaged: unexpected value in {str(entry)[:200]}")
    return entries


def build(entries: Sequence[Mapping[str, Any]], device: str) -> list[Head]:
    """Build heads from validated descriptions. On the device "meta" they take no memory."""
    with torch.device(device):
        return [Head(entry["kind"], entry["widths"], entry["classes"], entry["stride"]) for entry in entries]


def fitting_heads(entries: Sequence[Mapping[str, Any]], student: Trace) -> dict[str, Head]:
    """Build heads from validated descriptions, by section; empty where one of them does not fit the network's outputs.

    Memory is bounded: empty as well where they have more parameters than the network and `SPARE` together.
    """
    size = sum(each.numel() for head in build(entries, "meta") for each in head.parameters())
    allowed = sum(each.numel() for each in student.model.parameters()) + SPARE
    if size > allowed or not all(_fits(entry, student) for entry in entries):
        return {}
    return dict(zip([entry["section"] for entry in entries], build(entries, "cpu"), strict=True))


def _fits(entry: Mapping[str, Any], student: Trace) -> bool:
    try:
        output = student.output_of(entry["section"])
    except UsageError:
        return False
    kind, width = ("map", as_map(output).shape[1]) if output.ndim == 4 else ("vector", pooled(output).shape[1])
    return (kind, width, student.classes) == (entry["kind"], entry["widths"][0], entry["classes"])


def prefix(number: int) -> str:
    """The prefix of an exit's tensor names; exits are counted from 1."""
    return f"kd.exit{number}."


def write_exits(tensors: MutableMapping[str, Tensor], exits: Mapping[int, tuple[str, Head]]) -> dict[str, Any]:
    """Add the heads' tensors to the model's, and return the record, as JSON values.

    `exits` maps an exit's number to its section and head. Raises MakeweightError where the model has a tensor of the
    same name.
    """
    record = []
    for number, (section, head) in exits.items():
        if clash := [name for name in tensors if name.startswith(prefix(number))]:
            raise MakeweightError(
                f"kd.exits: the model's tensor {clash[0]!r} has a name that exit {number} needs: rename it"
            )
        for name, tensor in head.state_dict().items():
            tensors[prefix(number) + name] = tensor.detach().cpu().clone()
        record.append({"number": number} | describe(section, head))
    return {"exits": record}


def read_exits(record: Any, tensors: MutableMapping[str, Tensor], model: nn.Module) -> Exits:
    """Build the heads of a file's record, and move their tensors out of `tensors`.

    The file is untrusted. Raises MakeweightError for a record that `write_exits` cannot write, for tensors of the wrong
    shape or type, and for a section that the model does not have. The heads take no memory beyond the file's tensors.
    """
    entries = validate(record.get("exits") if isinstance(record, dict) else None, ("number", *ENTRY), fewest=1)
    known = dict(model.named_modules())
    heads = build(entries, "meta")
    for entry, head in zip(entries, heads, strict=True):
        number, section = entry["number"], entry["section"]
        if not section or section not in known:
            raise MakeweightError(f"exit {number} reads module {section!r}, which the model does not have: "
                                  f"{did_you_mean(section, [name for name in known if name])}")  # fmt: skip
        _fill(head, number, tensors)
        head.eval().requires_grad_(False)
    return Exits(model, [entry["section"] for entry in entries], heads, [entry["number"] for entry in entries])


def _fill(head: Head, number: int, tensors: MutableMapping[str, Tensor]) -> None:
    """Move an exit's tensors out of `tensors` into its head. Raises MakeweightError where they do not match it."""
    start = prefix(number)
    found = {name.removeprefix(start): tensors.pop(name) for name in list(tensors) if name.startswith(start)}
    expected = head.state_dict()
    for name, tensor in expected.items():
        if name not in found or found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise MakeweightError(f"{start}{name}: expected a {tensor.dtype} tensor of shape {list(tensor.shape)}")
    if unknown := [name for name in found if name not in expected]:
        raise MakeweightError(f"holds {start}{unknown[0]}, which exit {number} does not have")
    head.load_state_dict(found, assign=True)
