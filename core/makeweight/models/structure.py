"""Builds recorded changes of structure on networks, and validates records.

A record is a JSON table with a `number`, the version of its format. Exports and checkpoints contain the records of a
network in order. A network also stores its records (`Lineage`), so that a run that starts from it keeps them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..discovery import installed, load_class
from ..errors import MakeweightError, UsageError
from ..plugin_manager import Plugins
from .copies import meta_copy, transient
from .layers import parameter
from .records import Lineage, Record, check_number, lineage_of, records_of
from .state import untied

SPARE_BUFFERS = 16 << 20
"""maximum size in bytes of buffers outside the state dict that records may add"""


@dataclass
class Structure:
    """A new structure that a plugin returns from `on_structure`, and that its `on_build` builds.

    `record` is a JSON table with an integer `number` and everything that `on_build` needs. `tensors` are the values of
    new parameters and buffers by name; other tensors keep their value if name and shape stay the same. `kept` maps
    parameter name and dimension to the indices that were kept; masks and other per-channel state are indexed by it.
    """

    record: dict[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Mapping[int, Sequence[int]]] = field(default_factory=dict)


def replace(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace the submodule `name` of a model. Returns the new module.

    The new module gets the mode (training or eval) of the old one, and is frozen if all parameters of the old one were.
    Raises MakeweightError if the model has no such submodule.
    """
    try:
        old = model.get_submodule(name)
    except AttributeError as error:
        raise MakeweightError(f"the model has no module {name!r}: expected another model") from error
    if not name:
        raise MakeweightError("the model is a single layer: wrap it in nn.Sequential to change its structure")
    parameters = list(old.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.requires_grad_(False)
    model.set_submodule(name, module.train(old.training))
    return module


def build(model: nn.Module, record: Record, plugins: Plugins | None = None) -> None:
    """Build the structure of a record on `model` in place, and append the record to the model's lineage.

    `plugins` are the plugins of the run; without them, a plugin with default options is used. Raises MakeweightError if
    the plugin is not installed or cannot build the record.
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
    """A copy of `original` on the CPU with the structure of `records`; `original` may already have the first ones."""
    model = copy.deepcopy(original).cpu()
    for record in pending(model, records):
        build(model, record, plugins)
    return model


def pending(model: nn.Module, records: Iterable[Record]) -> list[Record]:
    """The records that the model does not have yet. Raises MakeweightError if it has different ones."""
    records, there = list(records), records_of(model)
    if [(each.plugin, each.record) for each in records[: len(there)]] != [(each.plugin, each.record) for each in there]:
        raise MakeweightError("the model's structure differs from the records: expected the original model")
    return records[len(there) :]


def check_records(
    model: nn.Module,
    records: Iterable[Record],
    shapes: Mapping[str, Sequence[int]],
    apart: tuple[str, ...] = (),
    plugins: Plugins | None = None,
) -> None:
    """Build records on a meta copy of the model, and compare names and shapes of its tensors with `shapes`.

    Raises MakeweightError if they differ, so that no record can allocate memory for which the file has no tensors.
    Names with a prefix in `apart` are ignored.
    """
    skeleton = meta_copy(model)
    allowed = sum(buffer.nbytes for buffer in transient(skeleton)) + SPARE_BUFFERS
    with torch.device("meta"):
        for record in pending(skeleton, records):
            build(skeleton, record, plugins)
    state = skeleton.state_dict(keep_vars=True)
    for name, tensor in untied(state).items():
        if name not in shapes:
            raise MakeweightError(f"its records require a tensor {name!r}, which is missing")
        if tuple(shapes[name]) != tuple(tensor.shape):
            asked, found = list(tensor.shape), list(shapes[name])
            raise MakeweightError(f"its records require {name!r} of shape {asked}, but it has shape {found}")
    if unknown := [name for name in shapes if name not in state and not name.startswith(apart)]:
        raise MakeweightError(f"its records give a structure without {unknown[0]!r}")
    if sum(buffer.nbytes for buffer in transient(skeleton)) > allowed:
        raise MakeweightError(f"its records require more than {SPARE_BUFFERS >> 20} MiB of constant buffers")


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
    except Exception as error:  # any class: the record and the plugin may come from third parties
        reason = (str(error).splitlines() or [""])[0]
        raise MakeweightError(
            f"structure of plugin {record.plugin!r} cannot be built: {type(error).__name__}: {reason}"
        ) from error


def carried(
    model: nn.Module,
    changes: Iterable[Mapping[str, Mapping[int, Sequence[int]]]],
    name: str,
    tensor: Tensor,
    axis: int | None = None,
) -> Tensor | None:
    """Per-parameter state from before `changes` (a list of `Structure.kept`), indexed to the current shape.

    See `Services.carried`.
    """
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
