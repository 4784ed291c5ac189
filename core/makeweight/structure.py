"""Structure: what plugins decided about a network's modules, as records, and the network built again from them.

A record is a JSON table with a `number` of its own. Records stand in exports and checkpoints in the order in which
they were decided; a network remembers them (`Lineage`), so that a run that starts from one carries them on.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import MakeweightError, UsageError
from .layers import parameter
from .plugins import Plugins, installed, load_class
from .state import untied

MOST_RECORDS, LARGEST_RECORD = 1 << 10, 16 << 20
"""records of a network, and bytes of one record's JSON, at most"""
SPARE_BUFFERS = 16 << 20
"""bytes of buffers outside the state dict that a record may add at most"""


@dataclass
class Structure:
    """A plugin's decision on another structure, which its `on_build` carries out.

    `record` is JSON with a whole `number`, and holds all that `on_build` needs. `tensors` are the values of new
    parameters and buffers by name; what is not among them keeps its value where name and shape stay. `kept` says, by
    parameter and dimension, which indices were kept; masks and other state by channel follow it.
    """

    record: dict[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Mapping[int, Sequence[int]]] = field(default_factory=dict)


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


def original_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU. Raises UsageError for a model that cannot be copied."""
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the model cannot be copied ({reason}): its stages and its export need a copy") from error


def original_of(model: nn.Module) -> nn.Module:
    """A copy on the CPU of the network without its records; its weights are zeros where it has records."""
    lineage = lineage_of(model)
    if lineage is None:
        return copy.deepcopy(model).cpu()

    def real(tensor: Tensor) -> Tensor:  # buffers outside the state dict are there
        return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.clone()

    return _copied(lineage.original, real)


def replace(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of the one of that name, with its mode, and frozen if all of it was. Returns it.

    Raises MakeweightError for a name that the model does not have.
    """
    try:
        old = model.get_submodule(name)
    except AttributeError as error:
        raise MakeweightError(f"the model has no module {name!r}: it is another model") from error
    if not name:
        raise MakeweightError("the model is a single layer: put it into an nn.Sequential to change its structure")
    parameters = list(old.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.requires_grad_(False)
    model.set_submodule(name, module.train(old.training))
    return module


def build(model: nn.Module, record: Record, plugins: Plugins | None = None) -> None:
    """Give a network the structure of a record, and let it remember it. `plugins` are those of the run, if any.

    Raises MakeweightError for a record that its plugin cannot build.
    """
    builder = plugins if plugins is not None and record.plugin in plugins.by_name else _by_default(record)
    with _explained(record):
        check_number(record.plugin, record.version, type(builder.by_name[record.plugin]), record.record)
        if record.plugin not in builder.with_hook("on_build"):
            raise MakeweightError("the plugin has no on_build")
        before = lineage_of(model) or Lineage(meta_copy(model), [])
        builder.call(record.plugin, "on_build", model=model, record=copy.deepcopy(record.record))
    model.__dict__["_makeweight_lineage"] = Lineage(before.original, [*before.records, record])


def rebuilt(original: nn.Module, records: Iterable[Record], plugins: Plugins | None = None) -> nn.Module:
    """A copy of the original on the CPU with the structure of these records, the first ones of which it may have."""
    model = copy.deepcopy(original).cpu()
    for record in pending(model, records):
        build(model, record, plugins)
    return model


def pending(model: nn.Module, records: Iterable[Record]) -> list[Record]:
    """The records that the model does not have yet. Raises MakeweightError where it has others."""
    records, there = list(records), records_of(model)
    if [(each.plugin, each.record) for each in records[: len(there)]] != [(each.plugin, each.record) for each in there]:
        raise MakeweightError("the model's structure was changed in another way: give the original model")
    return records[len(there) :]


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers take no memory; buffers outside the state dict keep their values."""
    kept = {id(buffer) for buffer in _transient(model)}
    return _copied(model, lambda each: each.clone() if id(each) in kept else torch.empty_like(each, device="meta"))


def check_records(
    model: nn.Module,
    records: Iterable[Record],
    shapes: Mapping[str, Sequence[int]],
    apart: tuple[str, ...] = (),
    plugins: Plugins | None = None,
) -> None:
    """Build records on a copy without memory, and compare it with the names and shapes of tensors.

    Raises MakeweightError where they differ, so that no record can ask for memory that the tensors do not fill. Names
    that begin as in `apart` are passed over.
    """
    skeleton = meta_copy(model)
    allowed = sum(buffer.nbytes for buffer in _transient(skeleton)) + SPARE_BUFFERS
    with torch.device("meta"):
        for record in pending(skeleton, records):
            build(skeleton, record, plugins)
    state = skeleton.state_dict(keep_vars=True)
    for name, tensor in untied(state).items():
        if name not in shapes:
            raise MakeweightError(f"its records ask for a tensor {name!r}, and there is none")
        if tuple(shapes[name]) != tuple(tensor.shape):
            asked, found = list(tensor.shape), list(shapes[name])
            raise MakeweightError(f"its records ask for {name!r} of shape {asked}, and it has shape {found}")
    if unknown := [name for name in shapes if name not in state and not name.startswith(apart)]:
        raise MakeweightError(f"its records leave no place for {unknown[0]!r}")
    if sum(buffer.nbytes for buffer in _transient(skeleton)) > allowed:
        raise MakeweightError(f"its records ask for more than {SPARE_BUFFERS >> 20} MiB of constant buffers")


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


def _by_default(record: Record) -> Plugins:
    if record.plugin not in installed():
        raise MakeweightError(f"the network's structure needs plugin {record.plugin!r} ({record.version}), "
                              "which is not installed")  # fmt: skip
    return Plugins({record.plugin: load_class(record.plugin)()})


@contextmanager
def _explained(record: Record) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except MakeweightError as error:
        raise MakeweightError(f"structure of plugin {record.plugin!r}: {error}") from error
    except Exception as error:  # a record may come from a stranger's file, and plugins are strangers' too
        reason = (str(error).splitlines() or [""])[0]
        raise MakeweightError(
            f"structure of plugin {record.plugin!r} cannot be built: {type(error).__name__}: {reason}"
        ) from error


def _transient(model: nn.Module) -> list[Tensor]:
    """The buffers outside the state dict."""
    found = []
    for module in model.modules():
        found += [module._buffers[name] for name in module._non_persistent_buffers_set if name in module._buffers]
    return [buffer for buffer in found if buffer is not None]


def _copied(model: nn.Module, made: Any) -> nn.Module:
    """A deep copy whose parameters and buffers are what `made` gives for each; those that share memory stay shared."""
    memo: dict[int, Any] = {}
    by_memory: dict[Any, Any] = {}
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            key = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
            if key not in by_memory:
                fresh = made(tensor)
                is_parameter = isinstance(tensor, nn.Parameter)
                by_memory[key] = nn.Parameter(fresh, tensor.requires_grad) if is_parameter else fresh
            memo[id(tensor)] = by_memory[key]
        return copy.deepcopy(model, memo)


def carried(
    model: nn.Module,
    changes: Iterable[Mapping[str, Mapping[int, Sequence[int]]]],
    name: str,
    tensor: Tensor,
    axis: int | None = None,
) -> Tensor | None:
    """State of a parameter from before these changes, in the parameter's shape; `Services.carried` says more."""
    for kept in changes:
        for dimension, indices in kept.get(name, {}).items():
            if axis is None or axis == dimension:
                index = torch.as_tensor(indices, dtype=torch.int64, device=tensor.device)
                place = dimension if axis is None else 0
                if place >= tensor.ndim or (len(index) and int(index.max()) >= tensor.shape[place]):
                    return None
                tensor = tensor.index_select(place, index)
    try:
        shape = parameter(model, name).shape
    except KeyError:
        return None
    expected = shape if axis is None else shape[axis : axis + 1]
    return tensor if tensor.shape == expected else None
