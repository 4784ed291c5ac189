"""Fewer hidden neurons: rows of one Linear and columns of the next, those with the smallest weights (L1 norm)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from makeweight import MakeweightError, UsageError, hookimpl
from makeweight.plugin import require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from makeweight import Trainer
    from makeweight.plugin import Structure

MOST_LAYERS = 10_000


@dataclass(eq=False)
class Drop:
    """Remove the hidden neurons that have the smallest incoming weights."""

    pairs: dict[str, str] = field(default_factory=dict)
    """a Linear layer and the next, {fc1: fc2}, between which nothing has weights"""
    fraction: float = 0.5
    """fraction of the neurons between two layers to remove"""
    at: Literal["start", "end"] = "start"
    """whether to decide at the start or at the end of the stage"""

    def __post_init__(self) -> None:
        require(0 <= self.fraction < 1, "drop.fraction", self.fraction, "0 <= fraction < 1")

    @hookimpl
    def on_check(self, model: nn.Module | None) -> str:
        if model is None:
            return "layers are looked up when the structure is decided"
        for first, second in self.pairs.items():
            if linear(model, first).out_features != linear(model, second).in_features:
                raise UsageError(f"drop.pairs {first}: {second}: expected as many inputs as {first} has outputs")
        return f"{self.fraction:.0%} of the neurons after {', '.join(self.pairs) or 'no layer'}, at the {self.at}"

    @hookimpl
    def on_structure(self, trainer: Trainer) -> Structure | None:
        from makeweight.plugin import Structure, parameter

        if trainer.ending != (self.at == "end") or not self.pairs:
            return None
        model = trainer.model
        kept: dict[str, dict[int, list[int]]] = {}
        for first, second in self.pairs.items():
            names = [(f"{first}.weight", 0), (f"{first}.bias", 0), (f"{second}.weight", 1)]
            for name, axis in names if linear(model, first).bias is not None else names[::2]:
                kept.setdefault(name, {})[axis] = largest_rows(parameter(model, names[0][0]), self.fraction)
        tensors = {name: selected(parameter(model, name).detach(), axes) for name, axes in kept.items()}
        sizes = {
            name.removesuffix(".weight"): list(each.shape[::-1]) for name, each in tensors.items() if each.ndim > 1
        }
        return Structure({"number": 1, "layers": sizes}, tensors, kept)

    @hookimpl
    def on_build(self, model: nn.Module, record: dict[str, Any]) -> None:
        from torch import nn

        from makeweight.plugin import replace

        layers = record.get("layers")
        if not isinstance(layers, dict) or len(layers) > MOST_LAYERS:
            raise MakeweightError(f"record of drop: expected a table of at most {MOST_LAYERS:,} layers")
        for name, sizes in layers.items():
            old = linear(model, name)
            if not (isinstance(sizes, list) and [type(each) for each in sizes] == [int, int]):
                raise MakeweightError(f"record of drop: {name!r}: expected [inputs, outputs]")
            if not (1 <= sizes[0] <= old.in_features and 1 <= sizes[1] <= old.out_features):
                raise MakeweightError(
                    f"record of drop: {name!r}: expected at most {old.in_features}, {old.out_features}"
                )
            replace(model, name, nn.Linear(sizes[0], sizes[1], bias=old.bias is not None, dtype=old.weight.dtype))


def linear(model: nn.Module, name: str) -> nn.Linear:
    """The Linear layer of that name. Raises UsageError where there is none."""
    from torch import nn

    module = dict(model.named_modules()).get(name)
    if not isinstance(module, nn.Linear):
        raise UsageError(f"drop: the model has no Linear layer {name!r}")
    return module


def largest_rows(weight: Tensor, fraction: float) -> list[int]:
    """The rows of a matrix that stay when this fraction, those of the smallest L1 norm, goes; in their order."""
    count = max(len(weight) - round(fraction * len(weight)), 1)
    rows: list[int] = weight.detach().abs().sum(1).topk(count).indices.sort().values.tolist()
    return rows


def selected(tensor: Tensor, kept: dict[int, list[int]]) -> Tensor:
    """What is left of a tensor when these indices are kept, by dimension."""
    import torch

    for axis, indices in kept.items():
        tensor = tensor.index_select(axis, torch.tensor(indices, device=tensor.device))
    return tensor
