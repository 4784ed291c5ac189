"""Records of structure: what a plugin decided about a network's modules, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from ..discovery import installed
from ..errors import MakeweightError

MOST_RECORDS, LARGEST_RECORD = 1 << 10, 16 << 20
"""records of a network, and bytes of one record's JSON, at most"""


class Record(NamedTuple):
    """A structure as it is written: the plugin that decided it, the plugin's version, and its record."""

    plugin: str
    version: str
    record: dict[str, Any]


@dataclass
class Lineage:
    """A network's original (its parameters without memory), and the records of what became of its structure."""

    original: nn.Module
    records: list[Record]


def records_of(model: nn.Module) -> list[Record]:
    """The records by which a network came from its original, in their order."""
    lineage = lineage_of(model)
    return [] if lineage is None else list(lineage.records)


def lineage_of(model: nn.Module) -> Lineage | None:
    """What a network remembers of its structure."""
    found = model.__dict__.get("_makeweight_lineage")
    return found if isinstance(found, Lineage) else None


def as_json(records: Iterable[Record]) -> list[list[Any]]:
    return [list(record) for record in records]


def read_records(value: Any) -> list[Record]:
    """Records as they stand in a file. Raises ValueError for what is not as `as_json` gave it."""
    if not isinstance(value, list) or len(value) > MOST_RECORDS:
        raise ValueError(f"expected a list of at most {MOST_RECORDS} records")
    records = []
    for each in value:
        if not (isinstance(each, list) and len(each) == 3 and all(isinstance(part, str) for part in each[:2])):
            raise ValueError("a record is not [plugin, version, table]")
        records.append(Record(each[0], each[1], checked_record(each[2])))
    return records


def checked_record(record: Any) -> dict[str, Any]:
    """A record as JSON gives it back. Raises ValueError for one that is not a bounded table with a whole `number`."""
    text = json.dumps(record, allow_nan=False)
    if len(text) > LARGEST_RECORD:
        raise ValueError(f"a record has {len(text):,} bytes: expected at most {LARGEST_RECORD:,}")
    if not isinstance(record, dict) or type(record.get("number")) is not int or record["number"] < 1:
        raise ValueError("a record is a table with its own number, {'number': 1, …}")
    found: dict[str, Any] = json.loads(text)
    return found


def check_number(plugin: str, version: str, cls: type, record: Any) -> None:
    """Raise MakeweightError for a record of a later number than the installed plugin reads (`record_number`)."""
    number, known = record.get("number", 1) if isinstance(record, dict) else 1, getattr(cls, "record_number", 1)
    if type(number) is not int or number > known:
        entry = installed().get(plugin)
        name, present = (entry.dist.name, entry.dist.version) if entry and entry.dist else (plugin, "this version")
        raise MakeweightError(
            f"record {str(number)[:20]!r} of plugin {plugin!r} was written by {name} {version}; {present} reads "
            f"records up to {known}: pip install '{name}>={version}'"
        )
