"""The export: a safetensors file with the tensors of a model, the metadata of plugins, and a checksum.

The `__metadata__` of the header has one entry, `makeweight`. It holds the version of the format, the checksum and the
metadata of plugins: `1 <16 hex digits> {"<plugin>": ["<version>", <metadata>], …}`. If the structure was changed, the
table begins with `"makeweight": ["<version>", {"number": 1, "structure": [["<plugin>", "<version>", <record>], …]}]`.
makeweight 0.1.0 cannot build recorded structures and refuses this entry as an unknown plugin. The checksum is XXH3-64
of the whole file, with the digits of the checksum replaced by zeros.
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
"""form of the value of the entry; finds an entry whose name is damaged"""


STRUCTURE = 1
"""version of the entry with the records of the structure"""


LARGEST_ENTRY = 17 << 20
"""maximum size of the entry in bytes; parsed JSON may take 40 times its size in memory"""


CHUNK = 1 << 20


USUAL_BYTES, USUAL_RATIO = 1 << 30, 64
"""default limit of the decoded tensors: the larger of this number of bytes and this multiple of the file size"""


@dataclass
class Artifact:
    """The content of an export, which plugins encode in `on_export` and decode in `on_load`.

    `metadata` maps a plugin to its JSON metadata; reading the file requires each of these plugins. `sizes` maps a
    tensor to its size in the file in bytes, if that differs from the tensor's own size. `records` describe the
    structure. `tensors` of a file may be `LazyTensors`, which are read or decoded on access. `trial` is True if only
    the size of the file is needed. `limit` is the maximum size of all decoded tensors in bytes.
    """

    tensors: MutableMapping[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    trial: bool = False
    limit: int | None = None

    def own(self, names: Collection[str] = ()) -> list[str]:
        """The names of tensors that belong to plugins, `<plugin>.…`, except the model's own `names`."""
        starts = tuple(f"{plugin}." for plugin in self.metadata)
        return [name for name in self.tensors if name.startswith(starts) and name not in names]


def write(artifact: Artifact, path: str | Path) -> int:
    """Write an artifact to a file atomically. Returns the size of the file in bytes."""
    path = Path(path)
    layouts = _layouts(artifact)
    with written_aside(path) as aside:
        pieces = (bytes_of(artifact.tensors[layout[0]]) for layout in layouts)
        write_in_pieces(aside, layouts, {"makeweight": _record(artifact)}, pieces)
        seal(aside)
    return path.stat().st_size


def size(artifact: Artifact) -> int:
    """The size in bytes of the file that `write` would write."""
    layouts = _layouts(artifact)
    return header_size(layouts, {"makeweight": _record(artifact)}) + sum(layout[3] for layout in layouts)


def _layouts(artifact: Artifact) -> list[Layout]:
    """The layouts of the tensors in file order: widest elements first, so that all tensors are aligned."""
    names = sorted(artifact.tensors, key=lambda name: (-artifact.tensors[name].dtype.itemsize, name))
    return [layout_of(name, artifact.tensors[name]) for name in names]


def write_bytes(path: str | Path, artifact: Artifact, name: str, size: int, pieces: Iterable[Any]) -> int:
    """Write a file like `write`, with a single uint8 tensor of `size` bytes, passed in pieces.

    Records and metadata are those of `artifact`. The tensor is never in memory as a whole. Returns the size in bytes.
    """
    path = Path(path)
    with written_aside(path) as aside:
        write_in_pieces(aside, [(name, "U8", (size,), size)], {"makeweight": _record(artifact)}, pieces)
        seal(aside)
    return path.stat().st_size


def read(path: str | Path, limit: int | None = None) -> Artifact:
    """Read an export. Its tensors are read on access and are still encoded by the plugins.

    `limit` is that of `Artifact`; by default the larger of 1 GiB and 64 times the size of the file. Raises
    MakeweightError if the file is not an export, is damaged, or needs a plugin or version that is not installed.
    """
    file = FileBytes(path)
    where = find_checksum(file)
    if where is None:
        read_foreign(file)
        raise MakeweightError(f"{path} is not a makeweight export: its header has no entry 'makeweight'")
    if file[where : where + 16] != _checksum(file, where):
        raise MakeweightError(f"{path} is damaged: its checksum does not match its content")
    stored, metadata = read_header(file)
    if len(metadata.get("makeweight", "")) > LARGEST_ENTRY:
        raise MakeweightError(f"{path}: its metadata of plugins has more than {LARGEST_ENTRY:,} bytes")
    try:
        record = {str(name): (str(version), each) for name, (version, each) in parse_json(metadata[ENTRY][18:]).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MakeweightError(f"{path} is damaged: its metadata of plugins is invalid") from error
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
    """The records in the entry `makeweight` of an export. Raises MakeweightError for a later version of the entry."""
    if entry["number"] != STRUCTURE:
        raise MakeweightError(f"its structure was written by makeweight {written}: pip install 'makeweight>={written}'")
    return read_records(entry["structure"])


def is_export(path: str | Path) -> bool:
    """Whether a safetensors file is an export.

    Raises MakeweightError if the file is not a safetensors file, or if it is an export with a damaged entry.
    """
    file = FileBytes(path)
    if find_checksum(file) is None:
        read_foreign(file)
        return False
    return True


def seal(path: Path) -> None:
    """Compute the checksum of a new file and write it to the header."""
    file = FileBytes(path)
    where = find_checksum(file)
    if where is None:
        raise AssertionError("the new header lacks the entry 'makeweight'")
    with path.open("r+b") as opened:
        opened.seek(where)
        opened.write(_checksum(file, where))


def _record(artifact: Artifact) -> str:
    """The entry of the header, with zeros as digits of the checksum."""
    versions = {name: entry.dist.version for name, entry in installed().items() if entry.dist}
    record: dict[str, Any] = {}
    if artifact.records:
        record["makeweight"] = [version("makeweight"), {"number": STRUCTURE, "structure": as_json(artifact.records)}]
    record |= {name: [versions.get(name, "0"), each] for name, each in artifact.metadata.items()}
    return f"1 {ZEROS.decode()} {json.dumps(record, separators=(',', ':'))}"


def find_checksum(file: FileBytes) -> int | None:
    """The offset of the checksum's digits in the file, or None if the file is not an export."""
    header = header_bytes(file)
    found = header.find(KEY)
    return None if found < 0 or found + len(KEY) + 16 > len(header) else 8 + found + len(KEY)


def read_foreign(file: FileBytes) -> list[Stored]:
    """The tensors of a file that is not an export. Raises MakeweightError if it looks like a damaged export."""
    stored, metadata = read_header(file)
    for name, value in metadata.items():
        if _edits(name, ENTRY) <= 2 or FORM.fullmatch(value):
            raise MakeweightError(
                f"{file.path} is damaged or was written by a later makeweight: its entry {name!r} is invalid"
            )
    if len(stored) == 1 and (stored[0].dtype, len(stored[0].shape)) == ("U8", 1) and stored[0].name in installed():
        raise MakeweightError(f"{file.path} is damaged: it is coded by plugin {stored[0].name!r} but lacks its entry")
    return stored


def _edits(one: str, other: str) -> int:
    """The edit distance of two words (Levenshtein 1966); a lower bound if their lengths differ by more than 2."""
    if abs(len(one) - len(other)) > 2:
        return abs(len(one) - len(other))
    row = list(range(len(other) + 1))
    for letter in one:
        before, row[0] = row[0], row[0] + 1
        for place, its in enumerate(other, 1):
            before, row[place] = row[place], min(before + (letter != its), row[place] + 1, row[place - 1] + 1)
    return row[-1]


def _checksum(file: FileBytes, where: int) -> bytes:
    """The XXH3-64 hash of the file with zeros as the 16 digits at `where`, as 16 hex digits."""
    digest = xxhash.xxh3_64(file[:where])
    digest.update(ZEROS)
    for begin in range(where + 16, len(file), CHUNK):
        digest.update(file[begin : begin + CHUNK])
    return digest.hexdigest().encode()


@contextmanager
def blamed_on(path: str | Path) -> Iterator[None]:
    """Turn exceptions of reading or decoding a file into a MakeweightError that names the file."""
    try:
        yield
    except MakeweightError as error:
        raise MakeweightError(f"{path}: {error}") from error
    except MemoryError as error:
        raise MakeweightError(f"{path} needs more memory than is available") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise MakeweightError(f"{path} cannot be decoded by its plugins: {type(error).__name__}: {error}") from error
