"""Set up a stage: choose layers and bits, and attach the quantizers of weights and activations to the model."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn.utils import parametrize

from makeweight.plugin import Task, Trainer, UsageError, by_glob, evaluating, layers, leaf_weight, weight_name

from .activations import Ranges
from .floats import float_nodes
from .forwards import attach, detach
from .memory import Memory
from .options import Bits, QuantizationOptions
from .plan import Plan, Planner
from .tracing import trace_model
from .weights import QuantizedWeight, channel_axis


def bits_by_layer(options: QuantizationOptions, model: nn.Module, option: Bits) -> dict[str, int]:
    """The bits of each quantized layer, from one of the options `weights` and `activations`.

    Raises UsageError for a glob that matches no layer.
    """
    everything, skipped = list(layers(model)), set()
    for glob in options.skip:
        skipped |= {"first": {everything[0]}, "last": {everything[-1]}}.get(glob) or set(layers(model, glob))
    return {layer: bits for layer, bits in by_glob(model, option).items() if bits and layer not in skipped}


def weight_bits(options: QuantizationOptions, model: nn.Module) -> dict[str, int]:
    """The bits of each quantized weight, by layer. Raises UsageError for a weight that several layers share."""
    bits = bits_by_layer(options, model, options.weights)
    named = list(model.named_parameters(remove_duplicate=False))
    for layer in bits:
        weight = leaf_weight(model.get_submodule(layer))
        tied = [name for name, parameter in named if parameter is weight]
        if len(tied) > 1:
            raise UsageError(
                f"qat: {tied[0]} is also {tied[1]}: a shared weight cannot be quantized: put its layers in qat.skip"
            )
    return bits


def plan_activations(options: QuantizationOptions, model: nn.Module, batch: object, task: Task) -> Plan:
    """Plan the quantizers of activations. Detaches those of a file that the model was loaded from.

    Raises UsageError for a model that torch.fx cannot trace.
    """
    detach(model)
    bits = bits_by_layer(options, model, options.activations)
    if not bits:
        return Plan()
    graph = trace_model(model)
    return Planner(model, graph, bits, float_nodes(model, graph, batch, task)).plan()


def check(options: QuantizationOptions, model: nn.Module, batch: object, task: Task) -> str:
    """Check a stage's options, and return the plugin's line of `--dry-run`: quantized tensors and folded layers.

    Attaches quantizers of activations to the model, as a test. Raises UsageError for what cannot be quantized.
    """
    weights, plan = weight_bits(options, model), plan_activations(options, model, batch, task)
    attach(model, dict.fromkeys(plan.bits, nn.Identity()))
    line = f"weights of {', '.join(f'{name} {bits}' for name, bits in weights.items()) or 'no layer'} (bits)"
    if not plan.bits:
        return f"{line}; activations not quantized"
    tensors = ", ".join(f"{path}{'.' if path else ''}{name} {bits}" for (path, name), bits in plan.bits.items())
    folded = f"; folded: {', '.join(plan.chains)}" if plan.chains else "; nothing to fold"
    return f"{line}; activations {tensors} (bits, ranges {options.ranges}){folded}"


def attach_weights(options: QuantizationOptions, trainer: Trainer, memory: Memory) -> dict[str, QuantizedWeight]:
    """Attach a quantizer to each weight that the stage quantizes; known learned step sizes are restored."""
    quantizers = {}
    for layer, bits in weight_bits(options, trainer.model).items():
        module = trainer.model.get_submodule(layer)
        quantizer = QuantizedWeight(leaf_weight(module), channel_axis(module), bits, options.ranges, options.percentile)
        parametrize.register_parametrization(module, "weight", quantizer)
        known, step = memory.steps.get(layer, (0, torch.empty(0)))
        carried = trainer.carried(weight_name(layer), step, quantizer.axis) if known == bits else None
        if carried is not None:
            quantizer.initialise(carried)
        quantizers[layer] = quantizer
    if options.ranges == "learned":
        own = {id(quantizer.step) for quantizer in quantizers.values()}
        names = [name for name, parameter in trainer.model.named_parameters() if id(parameter) in own]
        trainer.hyperparameters(names, weight_decay=0)
    return quantizers


def attach_activations(options: QuantizationOptions, trainer: Trainer, plan: Plan, memory: Memory) -> Ranges | None:
    """Attach the quantizers of activations, and restore known ranges. Returns None where the plan has none."""
    if not plan.bits:
        return None
    ranges = Ranges(plan.bits, options.ranges, options.percentile)
    trainer.add_auxiliary("qat", ranges)
    ranges.restore(memory.ranges)  # by site: add_auxiliary restores by index, which may be another tensor
    attach(trainer.model, {site: partial(ranges.quantize, index) for index, site in enumerate(plan.bits)})
    if options.ranges == "learned":
        trainer.hyperparameters(["auxiliary.qat.steps.*"], weight_decay=0)
    return ranges


@torch.no_grad()
def observe_sample(ranges: Ranges, trainer: Trainer) -> None:
    """Observe tensors that no training step observed, on one batch: those of a new structure at the end of a stage."""
    ranges.observing = not ranges.all_seen()
    if ranges.observing:
        with evaluating(trainer.model), trainer.accelerator.autocast():
            trainer.task.forward(trainer.model, trainer.sample_batch())
        ranges.update(trainer.accelerator)
