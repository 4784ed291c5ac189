"""Structure: what plugins decided about a network's modules, as records, and the network built again from them.

A record is a JSON table with a `number` of its own. Records stand in exports and checkpoints in the order in which
they were decided; a network remembers them (`Lineage`), so that a run that starts from one carries them on.
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
from ..plugins import Plugins
from .copies import meta_copy, transient
from .layers import parameter
from .records import Lineage, Record, check_number, lineage_of, records_of
from .state import untied

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
    allowed = sum(buffer.nbytes for buffer in transient(skeleton)) + SPARE_BUFFERS
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
    if sum(buffer.nbytes for buffer in transient(skeleton)) > allowed:
        raise MakeweightError(f"its records ask for more than {SPARE_BUFFERS >> 20} MiB of constant buffers")


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
