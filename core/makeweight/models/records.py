"""Records of structure: JSON tables that describe the changes of a network's modules by plugins."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from ..discovery import installed
from ..errors import MakeweightError

MOST_RECORDS, LARGEST_RECORD = 1 << 10, 16 << 20
"""maximum number of records of a network, and maximum size of the JSON of a record in bytes"""


class Record(NamedTuple):
    """A change of structure as stored in files: the plugin that made it, the plugin's version, and its JSON table."""

    plugin: str
    version: str
    record: dict[str, Any]


@dataclass
class Lineage:
    """The original of a network, with parameters on the meta device, and the records of its changes in order."""

    original: nn.Module
    records: list[Record]


def records_of(model: nn.Module) -> list[Record]:
    """The records of the changes from the original to this network, in order."""
    lineage = lineage_of(model)
    return [] if lineage is None else list(lineage.records)


def lineage_of(model: nn.Module) -> Lineage | None:
    """The lineage of a network, or None if its structure is the original one."""
    found = model.__dict__.get("_makeweight_lineage")
    return found if isinstance(found, Lineage) else None


def as_json(records: Iterable[Record]) -> list[list[Any]]:
    """Records as JSON values, [[plugin, version, table], …]."""
    return [list(record) for record in records]


def read_records(value: Any) -> list[Record]:
    """The inverse of `as_json`, for values from untrusted files. Raises ValueError."""
    if not isinstance(value, list) or len(value) > MOST_RECORDS:
        raise ValueError(f"expected a list of at most {MOST_RECORDS} records")
    records = []
    for each in value:
        if not (isinstance(each, list) and len(each) == 3 and all(isinstance(part, str) for part in each[:2])):
            raise ValueError("a record is not [plugin, version, table]")
        records.append(Record(each[0], each[1], checked_record(each[2])))
    return records


def checked_record(record: Any) -> dict[str, Any]:
    """A copy of a record through JSON. Raises ValueError unless it is a table of bounded size with `number` >= 1.

    Raises TypeError for values that are not JSON.
    """
    text = json.dumps(record, allow_nan=False)
    if len(text) > LARGEST_RECORD:
        raise ValueError(f"a record has {len(text):,} bytes: expected at most {LARGEST_RECORD:,}")
    if not isinstance(record, dict) or type(record.get("number")) is not int or record["number"] < 1:
        raise ValueError("an invalid record: expected a table with a number, {'number': 1, …}")
    found: dict[str, Any] = json.loads(text)
    return found


def check_number(plugin: str, version: str, cls: type, record: Any) -> None:
    """Raise MakeweightError if the number of a record exceeds `record_number` of the installed plugin class `cls`."""
    number, known = record.get("number", 1) if isinstance(record, dict) else 1, getattr(cls, "record_number", 1)
    if type(number) is not int or number > known:
        entry = installed().get(plugin)
        name, present = (entry.dist.name, entry.dist.version) if entry and entry.dist else (plugin, "this version")
        raise MakeweightError(
            f"record {str(number)[:20]!r} of plugin {plugin!r} was written by {name} {version}; {present} reads "
            f"records up to {known}: pip install '{name}>={version}'"
        )
