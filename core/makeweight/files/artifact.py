"""The export: tensors by name and what plugins recorded, in one safetensors file with a checksum over all of it.

The header's `__metadata__` has one entry, `makeweight`: the format's number, the checksum and the plugins' records,
`1 <16 hex digits> {"<plugin>": ["<version>", <record>], …}`. Where the structure was changed, a first entry
`"makeweight": ["<version>", {"number": 1, "structure": [["<plugin>", "<version>", <record>], …]}]` stands before
those of the plugins; makeweight 0.1.0, which cannot build it, refuses such a file by this name. The checksum is XXH3-64
of the whole file with its own digits as zeros.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xxhash

from ..discovery import installed, load_class
from ..errors import MakeweightError
from ..models.records import Record, as_json, check_number, read_records
from .file_bytes import FileBytes
from .lazy_tensors import LazyTensors
from .safetensors_file import header_bytes, header_size, read_header, write_in_pieces
from .tensor_bytes import Layout, Stored, bytes_of, layout_of
from .untrusted import parse_json
from .writing import written_aside

ENTRY = "makeweight"


KEY = b'"makeweight":"1 '


ZEROS = b"0" * 16


FORM = re.compile(r"\S{1,9} [0-9a-f]{16} \{.*\}", re.DOTALL)
"""what our entry looks like, whatever it is called"""


STRUCTURE = 1
"""number of the entry that holds the records of the structure"""


LARGEST_ENTRY = 17 << 20
"""bytes of the header's entry at most: as objects JSON may take forty times its bytes"""


CHUNK = 1 << 20


USUAL_BYTES, USUAL_RATIO = 1 << 30, 64
"""what the decoded tensors of a file may take unless more is asked for: so many bytes, or times the file's size"""


@dataclass
class Artifact:
    """What an export holds while plugins turn it into what is written, and back.

    `metadata` maps a plugin to its JSON record: an entry means that reading the file needs the plugin. `sizes` maps a
    tensor to the bytes it takes in the file, where that is not the tensor's own size. `records` are those of the
    structure. Tensors that come from a file may be `LazyTensors`, read or decoded when they are asked for. `trial` says
    that only the size of the file is wanted. `limit` is how many bytes all decoded tensors of a file may take.
    """

    tensors: MutableMapping[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    trial: bool = False
    limit: int | None = None

    def own(self, names: Collection[str] = ()) -> list[str]:
        """The tensors that are a plugin's own, `<plugin>.…`, unless they are among `names`, those of the model."""
        starts = tuple(f"{plugin}." for plugin in self.metadata)
        return [name for name in self.tensors if name.startswith(starts) and name not in names]


def write(artifact: Artifact, path: str | Path) -> int:
    """Write an artifact as one file, whole or not at all. Returns its size in bytes."""
    path = Path(path)
    layouts = _layouts(artifact)
    with written_aside(path) as aside:
        pieces = (bytes_of(artifact.tensors[layout[0]]) for layout in layouts)
        write_in_pieces(aside, layouts, {"makeweight": _record(artifact)}, pieces)
        seal(aside)
    return path.stat().st_size


def size(artifact: Artifact) -> int:
    """The bytes of the file that `write` would write."""
    layouts = _layouts(artifact)
    return header_size(layouts, {"makeweight": _record(artifact)}) + sum(layout[3] for layout in layouts)


def _layouts(artifact: Artifact) -> list[Layout]:
    """The tensors in the order in which they are written: the widest elements first, so that all are aligned."""
    names = sorted(artifact.tensors, key=lambda name: (-artifact.tensors[name].dtype.itemsize, name))
    return [layout_of(name, artifact.tensors[name]) for name in names]


def write_bytes(path: str | Path, artifact: Artifact, name: str, size: int, pieces: Iterable[Any]) -> int:
    """The same for one tensor of `size` bytes, which come in pieces, with an artifact's records and metadata.

    `pack` needs no memory for them.
    """
    path = Path(path)
    with written_aside(path) as aside:
        write_in_pieces(aside, [(name, "U8", (size,), size)], {"makeweight": _record(artifact)}, pieces)
        seal(aside)
    return path.stat().st_size


def read(path: str | Path, limit: int | None = None) -> Artifact:
    """Read a file that `write` wrote: its tensors, each read when it is asked for, still as plugins left them.

    `limit` is that of `Artifact`, 1 GiB or 64 times the file's size unless given. Raises MakeweightError, with the
    file's name and what is wrong, for a file that is not ours or not whole.
    """
    file = FileBytes(path)
    where = find_checksum(file)
    if where is None:
        read_foreign(file)
        raise MakeweightError(f"{path} is not a makeweight export: its header has no entry 'makeweight'")
    if file[where : where + 16] != _checksum(file, where):
        raise MakeweightError(f"{path} is damaged: its checksum does not match its bytes")
    stored, metadata = read_header(file)
    if len(metadata.get("makeweight", "")) > LARGEST_ENTRY:
        raise MakeweightError(f"{path}: its record of plugins has more than {LARGEST_ENTRY:,} bytes")
    try:
        record = {str(name): (str(version), each) for name, (version, each) in parse_json(metadata[ENTRY][18:]).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MakeweightError(f"{path} is damaged: its record of plugins is not as it was written") from error
    with blamed_on(path):
        records = _structure(*record.pop("makeweight", ("", {"number": STRUCTURE, "structure": []})))
    needed = {each.plugin: each.version for each in records} | {name: written for name, (written, _) in record.items()}
    for name, written in needed.items():
        if name not in installed():
            raise MakeweightError(f"{path} needs plugin {name!r} ({written}), which is not installed")
    with blamed_on(path):
        for name, (written, each) in record.items():
            check_number(name, written, load_class(name), each)
    return Artifact(
        LazyTensors({each.name: each for each in stored}),
        {name: each for name, (_, each) in record.items()},
        records=records,
        limit=max(USUAL_BYTES, USUAL_RATIO * len(file)) if limit is None else limit,
    )


def _structure(written: str, entry: Any) -> list[Record]:
    """The records of an export's own entry."""
    if entry["number"] != STRUCTURE:
        raise MakeweightError(f"its structure was written by makeweight {written}: pip install 'makeweight>={written}'")
    return read_records(entry["structure"])


def is_export(path: str | Path) -> bool:
    """Whether a safetensors file is one of ours.

    Raises MakeweightError when it is no safetensors file at all, and when it is ours and its entry is damaged.
    """
    file = FileBytes(path)
    if find_checksum(file) is None:
        read_foreign(file)
        return False
    return True


def seal(path: Path) -> None:
    """Put into a file that was just written the checksum that its bytes have."""
    file = FileBytes(path)
    where = find_checksum(file)
    if where is None:
        raise AssertionError("the header just written lacks its entry")
    with path.open("r+b") as opened:
        opened.seek(where)
        opened.write(_checksum(file, where))


def _record(artifact: Artifact) -> str:
    """The entry of the header, the checksum's digits still zeros."""
    versions = {name: entry.dist.version for name, entry in installed().items() if entry.dist}
    record: dict[str, Any] = {}
    if artifact.records:
        record["makeweight"] = [version("makeweight"), {"number": STRUCTURE, "structure": as_json(artifact.records)}]
    record |= {name: [versions.get(name, "0"), each] for name, each in artifact.metadata.items()}
    return f"1 {ZEROS.decode()} {json.dumps(record, separators=(',', ':'))}"


def find_checksum(file: FileBytes) -> int | None:
    """Where in the file the checksum's digits stand, None in a file that is not ours."""
    header = header_bytes(file)
    found = header.find(KEY)
    return None if found < 0 or found + len(KEY) + 16 > len(header) else 8 + found + len(KEY)


def read_foreign(file: FileBytes) -> list[Stored]:
    """The tensors of a file without our entry. Raises MakeweightError where it looks as if the entry was damaged."""
    stored, metadata = read_header(file)
    for name, value in metadata.items():
        if _edits(name, ENTRY) <= 2 or FORM.fullmatch(value):
            raise MakeweightError(
                f"{file.path} is damaged, or of a later makeweight: its entry {name!r} is not as this one writes it"
            )
    if len(stored) == 1 and (stored[0].dtype, len(stored[0].shape)) == ("U8", 1) and stored[0].name in installed():
        raise MakeweightError(f"{file.path} is damaged: it is coded by plugin {stored[0].name!r}, and lacks its entry")
    return stored


def _edits(one: str, other: str) -> int:
    """The edit distance of two words (Levenshtein 1966), at least; exact where their lengths are near."""
    if abs(len(one) - len(other)) > 2:
        return abs(len(one) - len(other))
    row = list(range(len(other) + 1))
    for letter in one:
        before, row[0] = row[0], row[0] + 1
        for place, its in enumerate(other, 1):
            before, row[place] = row[place], min(before + (letter != its), row[place] + 1, row[place - 1] + 1)
    return row[-1]


def _checksum(file: FileBytes, where: int) -> bytes:
    """XXH3-64 of the file with the 16 bytes at `where` as zeros, in hex digits."""
    digest = xxhash.xxh3_64(file[:where])
    digest.update(ZEROS)
    for begin in range(where + 16, len(file), CHUNK):
        digest.update(file[begin : begin + CHUNK])
    return digest.hexdigest().encode()


@contextmanager
def blamed_on(path: str | Path) -> Iterator[None]:
    """What plugins raise while they decode is the file's fault: an error that names it."""
    try:
        yield
    except MakeweightError as error:
        raise MakeweightError(f"{path}: {error}") from error
    except MemoryError as error:
        raise MakeweightError(f"{path} needs more memory than there is") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise MakeweightError(f"{path} is not as its plugins wrote it: {type(error).__name__}: {error}") from error
