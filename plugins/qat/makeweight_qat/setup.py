"""What the plugin puts into the model before training, for every stage to come, and how it follows the stages."""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from makeweight import UsageError
from makeweight.layers import layers, leaf_weight

from .activations import Ranges
from .forwards import attach, detach
from .plan import Plan, make_plan
from .tracing import trace_whole
from .weights import QuantizedWeight, channel_axis

if TYPE_CHECKING:
    from makeweight import Trainer

    from .plugin import Quantization


def check_stages(plugin: Quantization, trainer: Trainer) -> None:
    """Raise UsageError for options that do not fit a stage, or that would need another structure in one."""
    for options, other in trainer.staged(plugin):
        if other.begin >= options.epochs:
            raise UsageError(
                f"qat.begin {other.begin:g}: expected less than the {options.epochs} epochs of the stage; weights and "
                "activations of 0 bits leave a stage out"
            )
        for option in ("ranges", "percentile"):
            if getattr(other, option) != getattr(plugin, option):
                raise UsageError(f"qat.{option} {getattr(other, option)}: expected the same in every stage")


def quantize_weights(plugin: Quantization, trainer: Trainer) -> dict[str, int]:
    """Put a quantizer behind each weight that any stage quantizes; the bits by layer."""
    asked: dict[str, int] = {}
    for _, other in trainer.staged(plugin):
        asked |= other.bits(trainer.model, "weights")
    uses: dict[int, list[str]] = {}
    for name, parameter in trainer.model.named_parameters(remove_duplicate=False):
        uses.setdefault(id(parameter), []).append(name)
    for layer, bits in asked.items():
        module = _layer(trainer.model, layer)
        weight = leaf_weight(module)
        if len(tied := uses[id(weight)]) > 1:
            raise UsageError(
                f"qat: {tied[0]} is also {tied[1]}: a shared weight cannot be quantized: name it in qat.skip"
            )
        quantizer = QuantizedWeight(weight, channel_axis(module), bits, plugin.ranges, plugin.percentile)
        parametrize.register_parametrization(module, "weight", quantizer)
    return asked


def quantize_activations(plugin: Quantization, trainer: Trainer) -> tuple[Plan | None, Ranges | None]:
    """Put quantizers into the forwards, where the graph has integers in any stage."""
    detach(trainer.model)  # a model that was read from a quantized file has the file's
    stages = [other.bits(trainer.model, "activations") for _, other in trainer.staged(plugin)]
    asked = {layer: bits for stage in stages for layer, bits in stage.items()}
    if not asked:
        return None, None
    plan = make_plan(trainer.model, asked, float_tensors(trainer))
    ranges = Ranges(list(plan.bits.values()), plugin.ranges, plugin.percentile)
    trainer.add_auxiliary("qat", ranges)
    attach(trainer.model, {home: partial(ranges.quantize, index) for index, home in enumerate(plan.bits)})
    if plugin.ranges == "learned":
        _keep_in_graph(trainer, ranges)
    return plan, ranges


def float_tensors(trainer: Trainer) -> set[str]:
    """The names of the nodes of the model's graph that give tensors of floating point, for two examples."""
    model = trainer.model
    graph = fx.GraphModule(model, trace_whole(model))
    calls: list[tuple[Any, Any]] = []
    handle = model.register_forward_pre_hook(lambda module, args, named: calls.append((args, named)), with_kwargs=True)
    training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng():
            trainer.task.forward(model.eval(), _few(trainer.sample_batch()))
            inputs, named = calls[0]
            if named:
                raise UsageError(
                    "qat: the model is called with its inputs by name: its activations cannot be quantized; weights "
                    "alone can, with --qat.activations 0"
                )
            seen = _Kinds(graph.eval())
            seen.run(*inputs)
    finally:
        handle.remove()
        model.train(training)
    return seen.floats


def describe(plugin: Quantization, weights: dict[str, int]) -> str:
    """The line of --dry-run."""
    said = f"weights of {', '.join(f'{name} {bits}' for name, bits in weights.items()) or 'no layer'} (bits)"
    if plugin.plan is None:
        return f"{said}; activations as they are"
    plan = plugin.plan
    places = ", ".join(f"{path}{'.' if path else ''}{name} {bits}" for (path, name), bits in plan.bits.items())
    folded = f"; folded: {', '.join(plan.chains)}" if plan.chains else "; nothing to fold"
    return f"{said}; activations {places} (bits, ranges {plugin.ranges}){folded}"


def follow(plugin: Quantization, trainer: Trainer, begins: bool) -> None:
    """Give every quantizer the present stage's bits, on or off; learned steps begin where quantization does."""
    now = plugin.bits(trainer.model, "weights")
    plugin.layers = list(now)
    for name, module in layers(trainer.model).items():
        if not _is_quantized(module):
            continue
        quantizer, weight = quantizer_of(trainer.model, name)
        quantizer.on = plugin.on and name in now
        if name in now:
            quantizer.bits = now[name]
            if begins and plugin.begun.get(name) != now[name]:
                quantizer.begin(weight)
                plugin.begun[name] = now[name]
    ranges = plugin.observed
    if ranges is not None and plugin.plan is not None:
        asked = plugin.bits(trainer.model, "activations")
        ranges.on = plugin.on
        present = limits(plugin.plan, asked)
        if present != ranges.limits:
            ranges.set_limits(present)


def limits(plan: Plan, asked: dict[str, int]) -> list[int]:
    """The largest integers of a plan's tensors where only the layers in `asked` read integers."""
    most = max(asked.values(), default=0)
    readers: dict[tuple[str, str], list[int]] = {}
    for layer, home in plan.inputs.items():
        readers.setdefault(home, []).append(asked.get(layer, 0))
    return [2 ** max(readers.get(home, [most])) - 1 for home in plan.bits]


def quantizer_of(model: nn.Module, layer: str) -> tuple[QuantizedWeight, Tensor]:
    """The quantizer behind a layer's weight, and the weight that the optimizer updates."""
    module = _layer(model, layer)
    found: Any = module.parametrizations["weight"]
    quantizer = next(each for each in found if isinstance(each, QuantizedWeight))
    return quantizer, leaf_weight(module).detach()


def _is_quantized(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module, "weight"):
        return False
    behind: Any = module.parametrizations
    return any(isinstance(each, QuantizedWeight) for each in behind["weight"])


def _keep_in_graph(trainer: Trainer, ranges: Ranges) -> None:
    """Learned steps take part in every backward, as data-parallel training asks, before they are used too."""
    task = trainer.losses["task"]
    weights = [
        quantizer_of(trainer.model, name)[0] for name, module in trainer.layers().items() if _is_quantized(module)
    ]

    def kept(batch: Any, output: Any) -> Tensor:
        unused: list[Tensor] = [each.step for each in weights if not each.on]
        if not (ranges.on and ranges.all_seen()) or 0 in ranges.limits:
            unused += list(ranges.steps)
        loss = task(batch, output)
        return loss + 0.0 * torch.cat(unused).sum() if unused else loss

    trainer.losses["task"] = kept


class _Kinds(fx.Interpreter):
    """Runs a graph and notes which nodes give tensors of floating point."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.floats: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.is_floating_point():
            self.floats.add(n.name)
        return result


def _few(batch: Any) -> Any:
    """Two examples of a batch."""
    if isinstance(batch, dict):
        return {name: each[:2] for name, each in batch.items()}
    return [each[:2] for each in batch]


def _layer(model: nn.Module, name: str) -> Any:
    found: Any = attrgetter(name)(model) if name else model
    return found
