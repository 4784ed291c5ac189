"""Finds layers by glob, and the parameters that the optimizer updates."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from ..errors import UsageError, did_you_mean

KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.modules.conv._ConvNd)
Value = TypeVar("Value")


def weight_name(layer: str) -> str:
    """The name of a layer's weight in the state dict. The layer '' is the model itself."""
    return f"{layer}.weight" if layer else "weight"


def layers(model: nn.Module, glob: str = "*") -> dict[str, nn.Module]:
    """The Linear and Conv layers whose names match `glob`, in model order. Of layers with tied weights, the first one.

    Raises UsageError if no layer matches.
    """
    named = {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}
    firsts = {id(leaf_weight(module)): name for name, module in reversed(named.items())}
    named = {name: module for name, module in named.items() if firsts.get(id(leaf_weight(module))) == name}
    found = {name: module for name, module in named.items() if fnmatchcase(name, glob)}
    if not found:
        raise UsageError(f"no layer matches {glob!r}: {did_you_mean(glob, named)}")
    return found


def by_glob(model: nn.Module, value: Value | dict[str, Value], glob: str = "*") -> dict[str, Value]:
    """The value of an option for each layer. The option is a single value for layers that match `glob`, or a table.

    A table maps globs to values; the last matching glob decides. Layers without a match are left out. Raises UsageError
    for a glob that matches no layer.
    """
    table = value if isinstance(value, dict) else {glob: value}
    chosen = {name: each for pattern, each in table.items() for name in layers(model, pattern)}
    return {name: chosen[name] for name in layers(model) if name in chosen}


def parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter with a plain name such as `fc1.weight`; if it is parametrized, the original that is trained.

    Raises KeyError if the model has no such parameter.
    """
    layer, _, kind = name.rpartition(".")
    try:
        module = model.get_submodule(layer)
        found = module._parameters.get(kind)
        if found is None:
            found = module.parametrizations[kind].original  # type: ignore[index,union-attr]
    except (AttributeError, KeyError, TypeError) as error:
        raise KeyError(name) from error
    assert isinstance(found, nn.Parameter)
    return found


def leaf_weight(module: nn.Module) -> nn.Parameter:
    """The weight of a layer; if it is parametrized, the original that is trained."""
    weight = module._parameters.get("weight")  # ten times faster than parametrize.is_parametrized
    if weight is None:
        weight = module.parametrizations["weight"].original  # type: ignore[index,union-attr]
    assert weight is not None
    return weight
