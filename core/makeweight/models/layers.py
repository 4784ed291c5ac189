"""Layers by glob, and the weight that the optimizer updates."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from ..errors import UsageError, did_you_mean

KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.modules.conv._ConvNd)
Value = TypeVar("Value")


def weight_name(layer: str) -> str:
    """The name of a layer's weight in the state dict; the layer '' is the model itself."""
    return f"{layer}.weight" if layer else "weight"


def layers(model: nn.Module, glob: str = "*") -> dict[str, nn.Module]:
    """The layers (every Linear and Conv) whose name matches, in the model's order; one of those with a tied weight.

    Raises UsageError when there is none.
    """
    named = {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}
    firsts = {id(leaf_weight(module)): name for name, module in reversed(named.items())}
    named = {name: module for name, module in named.items() if firsts.get(id(leaf_weight(module))) == name}
    found = {name: module for name, module in named.items() if fnmatchcase(name, glob)}
    if not found:
        raise UsageError(f"no layer matches {glob!r}: {did_you_mean(glob, named)}")
    return found


def by_glob(model: nn.Module, value: Value | dict[str, Value], glob: str = "*") -> dict[str, Value]:
    """What an option that is a value or a table by layer glob says for each layer: the last match holds.

    A layer that no glob of the table matches is left out; a glob that matches no layer raises UsageError.
    """
    table = value if isinstance(value, dict) else {glob: value}
    chosen = {name: each for pattern, each in table.items() for name in layers(model, pattern)}
    return {name: chosen[name] for name in layers(model) if name in chosen}


def parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter that the optimizer updates under a plain name, `fc1.weight`, whether or not it is parametrized.

    Raises KeyError for a name that the model does not have.
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
    """The weight that the optimizer updates: the one behind the parametrization where there is one."""
    weight = module._parameters.get("weight")  # asking torch whether it is parametrized costs ten times as much
    if weight is None:
        weight = module.parametrizations["weight"].original  # type: ignore[index,union-attr]
    assert weight is not None
    return weight
