"""Plan the quantizers of activations: one for each tensor that an integer program stores as integers.

These tensors are the inputs of every quantized layer, the outputs of every convolution (after the batch norm and ReLU
that are folded into it), and the operands and results of additions, products and concatenations with such operands.
An operator that only moves or selects values, such as max pooling or reshaping, shares the quantizer of its input.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from makeweight.plugin import KINDS, UsageError

from .tracing import ADVICE, Site, sites_of
from .weights import channel_axis

# Kinds of operators: the class of a module, a function, or the name of a tensor method.
CONVOLUTIONS = (nn.modules.conv._ConvNd,)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
RELUS = {nn.ReLU, nn.ReLU6, torch.relu, torch.relu_, functional.relu, functional.relu_, functional.relu6,
         "relu", "relu_"}  # fmt: skip
MOVES = {nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Flatten, nn.Unflatten,
         nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d, nn.ChannelShuffle, nn.PixelShuffle,
         torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk,
         torch.split, functional.dropout, functional.max_pool2d, torch.max_pool2d, operator.getitem,
         "flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "chunk",
         "split"}  # fmt: skip
JOINS = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul, torch.cat, torch.concat,
         "add", "add_", "mul", "mul_"}  # fmt: skip
REPEATED = MOVES - {nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, functional.dropout,
                    operator.getitem, torch.chunk, torch.split, "chunk", "split", "contiguous"}  # fmt: skip


@dataclass
class Plan:
    """A plan in names, so that it applies to every copy of the model."""

    bits: dict[Site, int] = field(default_factory=dict)
    """the bits of each tensor to quantize, in the order of the forward"""
    inputs: dict[str, Site] = field(default_factory=dict)
    """by layer: its input tensor"""
    repeats: dict[Site, Site] = field(default_factory=dict)
    """outputs of operators that only move values, and their source: the program repeats the source's quantizer there"""
    norms: dict[str, str] = field(default_factory=dict)
    """by layer: the batch norm that is folded into it"""
    chains: list[str] = field(default_factory=list)
    """calls that the integer program fuses into one operator, such as `conv1 + bn1 + relu`"""


class Planner:
    """Makes a plan from the graph of the whole model.

    `bits` holds the layers whose activations are quantized, and their bits; `floats` the nodes that output
    floating-point tensors. `plan` raises UsageError for a quantizer in a forward that cannot be traced by itself.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, bits: dict[str, int], floats: set[fx.Node]) -> None:
        self.graph, self.bits, self.floats = graph, bits, floats
        self.sites, self.reasons = sites_of(model, graph)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.wanted: dict[fx.Node, int] = {}  # the bits of each node to quantize

    def plan(self) -> Plan:
        plan = Plan()
        ends: list[fx.Node] = []
        most = max(self.bits.values())
        for node in self.layers():
            chain = [node, *self._fused_after(node)]
            if len(chain) > 1:
                plan.chains.append(" + ".join(self._label(each) for each in chain))
            if len(chain) > 1 and isinstance(self._module(chain[1]), NORMS):
                plan.norms[str(node.target)] = str(chain[1].target)
            if isinstance(self._module(node), CONVOLUTIONS):
                ends.append(chain[-1])
        for node in self.layers():
            tensor, bits = self.source(node.args[0]), self.bits[str(node.target)]
            self.wanted[tensor] = max(bits, self.wanted.get(tensor, 0))
        for node in ends:
            self.wanted.setdefault(node, most)
        self._add_joins(most)
        named = {node: self._site(node) for node in self.graph.nodes if node in self.wanted}
        plan.bits = {site: self.wanted[node] for node, site in named.items()}
        plan.inputs = {str(node.target): named[self.source(node.args[0])] for node in self.layers()}
        for node in self.graph.nodes:
            if self._kind(node) in REPEATED and node in self.sites and self.source(node) in named:
                plan.repeats[self.sites[node]] = named[self.source(node)]
        return plan

    def layers(self) -> list[fx.Node]:
        """The calls of the layers whose activations are quantized."""
        return [node for node in self.graph.nodes if node.op == "call_module" and str(node.target) in self.bits]

    def source(self, node: Any) -> fx.Node:
        """The node whose values these are: follows operators that only move values back to their input."""
        source: fx.Node = node
        while self._kind(source) in MOVES and source.args and isinstance(source.args[0], fx.Node):
            source = source.args[0]
        return source

    def _add_joins(self, bits: int) -> None:
        """Quantize all operands and results of joins with a quantized operand, repeatedly, until nothing changes."""
        grown = True
        while grown:
            grown = False
            for node in self.graph.nodes:
                operands = [self.source(each) for each in node.all_input_nodes] if self._kind(node) in JOINS else []
                if len(operands) < 2 or not self.floats.issuperset(operands):
                    continue
                end = [node, *self._fused_after(node)][-1]
                tensors = [*operands, end]
                if any(each in self.wanted for each in operands) and not all(each in self.wanted for each in tensors):
                    for each in tensors:
                        self.wanted.setdefault(each, bits)
                    grown = True

    def _fused_after(self, node: fx.Node) -> list[fx.Node]:
        """The batch norm and ReLU that are fused into a call: each is the only user of the output before it."""
        found: list[fx.Node] = []
        following = _only_user(node)
        if following is not None and isinstance(self._module(following), NORMS) and self._can_fold(node, following):
            found.append(following)
            following = _only_user(following)
        if following is not None and self._kind(following) in RELUS:
            found.append(following)
        return found

    def _can_fold(self, node: fx.Node, norm: fx.Node) -> bool:
        """Whether a batch norm can be folded into the call before it: a layer with the same number of channels."""
        layer: Any = self._module(node)
        module: Any = self._module(norm)
        if not isinstance(layer, KINDS) or not getattr(module, "track_running_stats", False):
            return False
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd) and layer.groups > 1
        once = all(sum(each.target == call.target for each in self.graph.nodes) == 1 for call in (node, norm))
        weight: Any = layer.weight
        return once and not transposed and module.num_features == weight.shape[channel_axis(layer)]

    def _kind(self, node: Any) -> Any:
        """The kind of a node, as in the sets above: a module's class, a function, or a method's name."""
        if not isinstance(node, fx.Node):
            return None
        return type(self._module(node)) if node.op == "call_module" else node.target

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _label(self, node: fx.Node) -> str:
        return str(node.target) if node.op == "call_module" else getattr(node.target, "__name__", str(node.target))

    def _site(self, node: fx.Node) -> Site:
        if node in self.sites:
            return self.sites[node]
        path = node.meta.get("place", ("",))[0]
        raise self.reasons.get(path) or UsageError(
            f"qat: the forward of module {path!r} makes other calls when torch.fx traces it by itself: {ADVICE}"
        )


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
