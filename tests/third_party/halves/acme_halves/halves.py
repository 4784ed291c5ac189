"""Two small layers in place of one: a Linear becomes a product of two, of the rank that its outputs need.

y = W x has the second moment W E[x xᵀ] Wᵀ. With the leading eigenvectors U [out, rank] of it, U Uᵀ W holds as much of
the squared outputs as any matrix of that rank can (principal components of the outputs): Uᵀ W, then U.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from makeweight import MakeweightError, hookimpl
from makeweight.plugin import require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from makeweight import Trainer
    from makeweight.plugin import Structure

MOST_LAYERS = 10_000


@dataclass(eq=False)
class Halves:
    """Replace Linear layers by two smaller ones, of the lowest rank that keeps most of their outputs."""

    layers: str = "*"
    """layers to replace, by glob; those that would not become smaller stay"""
    energy: float = 0.9
    """fraction of the squared outputs to keep"""
    batches: int = 4
    """batches of training examples to measure the outputs on"""
    at: Literal["start", "end"] = "start"
    """whether to decide at the start or at the end of the stage"""

    def __post_init__(self) -> None:
        require(0 < self.energy <= 1, "halves.energy", self.energy, "0 < energy <= 1")
        require(self.batches >= 1, "halves.batches", self.batches, "at least 1")

    @hookimpl
    def on_check(self, model: nn.Module | None) -> str:
        if model is None:
            return "layers are looked up when the structure is decided"
        return f"{', '.join(linears(model, self.layers)) or 'no layer'}: two layers for one, at the stage's {self.at}"

    @hookimpl
    def on_structure(self, trainer: Trainer) -> Structure | None:
        from makeweight.plugin import Structure, leaf_weight

        if trainer.ending != (self.at == "end"):
            return None
        layers: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for name, moment in input_moments(trainer, self.layers, self.batches).items():
            layer: Any = trainer.model.get_submodule(name)
            first, second = factors(leaf_weight(layer).detach(), moment, self.energy)
            if first.numel() + second.numel() < layer.weight.numel():
                layers[name] = [layer.in_features, len(first), layer.out_features, layer.bias is not None]
                tensors |= {f"{name}.0.weight": first, f"{name}.1.weight": second}
                tensors |= {} if layer.bias is None else {f"{name}.1.bias": layer.bias.detach()}
        return Structure({"number": 1, "layers": layers}, tensors) if layers else None

    @hookimpl
    def on_build(self, model: nn.Module, record: dict[str, Any]) -> None:
        from torch import nn

        from makeweight.plugin import replace

        for name, (inputs, rank, outputs, bias) in checked(model, record).items():
            dtype = model.get_parameter(f"{name}.weight").dtype
            first = nn.Linear(inputs, rank, bias=False, dtype=dtype)
            replace(model, name, nn.Sequential(first, nn.Linear(rank, outputs, bias=bias, dtype=dtype)))


def linears(model: nn.Module, glob: str) -> dict[str, nn.Linear]:
    """The Linear layers whose name matches. Raises UsageError for a glob that matches no layer."""
    from torch import nn

    from makeweight.plugin import layers

    return {name: each for name, each in layers(model, glob).items() if isinstance(each, nn.Linear)}


def input_moments(trainer: Trainer, glob: str, batches: int) -> dict[str, Tensor]:
    """The second moment of each layer's inputs over some training examples: float64 [in, in]."""
    import torch

    from makeweight.plugin import evaluating

    moments: dict[str, Tensor] = {}

    def measure(name: str, inputs: Tensor) -> None:
        x = inputs.detach().flatten(0, -2).double()  # [N, in]
        moments[name] = moments.get(name, 0) + x.T @ x

    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: measure(name, inputs[0]))
        for name, layer in linears(trainer.model, glob).items()
    ]
    with evaluating(trainer.model), torch.no_grad():
        for batch in trainer.sample_batches(batches):
            trainer.task.forward(trainer.model, batch)
    for handle in handles:
        handle.remove()
    return moments


def factors(weight: Tensor, moment: Tensor, energy: float) -> tuple[Tensor, Tensor]:
    """[rank, in] and [out, rank], whose product keeps this fraction of the squared outputs of `weight` [out, in]."""
    import torch

    values, vectors = torch.linalg.eigh(weight.double() @ moment @ weight.double().T)  # ascending
    held = values.clamp_min(0).flip(0).cumsum(0)
    rank = min(int((held < energy * held[-1]).sum()) + 1, len(held))
    basis = vectors[:, -rank:]  # [out, rank]
    return (basis.T @ weight.double()).to(weight.dtype), basis.to(weight.dtype)


def checked(model: nn.Module, record: dict[str, Any]) -> dict[str, tuple[int, int, int, bool]]:
    """What a record asks for. Raises MakeweightError for what `on_structure` would not have written."""
    layers, there = record.get("layers"), linears(model, "*")
    if not isinstance(layers, dict) or not 0 < len(layers) <= MOST_LAYERS:
        raise MakeweightError(f"record of halves: expected a table of 1 to {MOST_LAYERS:,} layers")
    for name, sizes in layers.items():
        if not (isinstance(sizes, list) and [type(each) for each in sizes] == [int, int, int, bool]):
            raise MakeweightError(f"record of halves: {name!r}: expected [inputs, rank, outputs, bias]")
        if name not in there:
            raise MakeweightError(f"record of halves: the model has no Linear layer {name!r}")
        inputs, rank, outputs, bias = sizes
        layer = there[name]
        if (layer.in_features, layer.out_features, layer.bias is not None) != (inputs, outputs, bias):
            raise MakeweightError(f"record of halves: {name!r} is not {inputs} to {outputs}: it is another model's")
        if not 1 <= rank <= min(inputs, outputs):
            raise MakeweightError(f"record of halves: {name!r}: expected a rank of 1 to {min(inputs, outputs)}")
    return layers
