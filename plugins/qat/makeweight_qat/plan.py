"""Where the quantizers of activations stand: at the tensors that an integer graph holds as integers.

These are the inputs of every quantized layer, the outputs of every convolution (after the batch norm and the ReLU that
are folded into it), and the operands and results of additions, products and concatenations that such tensors meet in.
What only moves values about (pooling by maximum, reshaping) has its input's quantizer.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from makeweight.plugin import KINDS, UsageError

from .tracing import ADVICE, Home, homes_of
from .weights import channel_axis

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
    """By name, so that it holds for every copy of the model."""

    bits: dict[Home, int] = field(default_factory=dict)
    """the tensors to quantize, in the order of the forward, and their bits"""
    inputs: dict[str, Home] = field(default_factory=dict)
    """by layer: the tensor it reads"""
    repeats: dict[Home, Home] = field(default_factory=dict)
    """what only moves values, and the tensor whose values they are: an integer graph says so again after each"""
    norms: dict[str, str] = field(default_factory=dict)
    """by layer: the batch norm that is folded into it"""
    chains: list[str] = field(default_factory=list)
    """what is one operator in the integer graph, as `conv1 + bn1 + relu`"""


class Planner:
    """Looks at a model's whole graph.

    `bits` are those of the layers whose activations are quantized, `floats` the nodes that give tensors of floating
    point. Raises UsageError where a quantizer is wanted in a forward that cannot be traced by itself.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, bits: dict[str, int], floats: set[fx.Node]) -> None:
        self.graph, self.bits, self.floats = graph, bits, floats
        self.homes, self.reasons = homes_of(model, graph)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.wanted: dict[fx.Node, int] = {}

    def plan(self) -> Plan:
        plan = Plan()
        ends: list[fx.Node] = []
        most = max(self.bits.values())
        for node in self.layers():
            chain = [node, *self._after(node)]
            if len(chain) > 1:
                plan.chains.append(" + ".join(self._said(each) for each in chain))
            if len(chain) > 1 and isinstance(self._module(chain[1]), NORMS):
                plan.norms[str(node.target)] = str(chain[1].target)
            if isinstance(self._module(node), CONVOLUTIONS):
                ends.append(chain[-1])
        for node in self.layers():
            read, bits = self.source(node.args[0]), self.bits[str(node.target)]
            self.wanted[read] = max(bits, self.wanted.get(read, 0))
        for node in ends:
            self.wanted.setdefault(node, most)
        self._join(most)
        named = {node: self._home(node) for node in self.graph.nodes if node in self.wanted}
        plan.bits = {home: self.wanted[node] for node, home in named.items()}
        plan.inputs = {str(node.target): named[self.source(node.args[0])] for node in self.layers()}
        for node in self.graph.nodes:
            if self._kind(node) in REPEATED and node in self.homes and self.source(node) in named:
                plan.repeats[self.homes[node]] = named[self.source(node)]
        return plan

    def layers(self) -> list[fx.Node]:
        """The calls of the layers whose activations are quantized."""
        return [node for node in self.graph.nodes if node.op == "call_module" and str(node.target) in self.bits]

    def source(self, node: Any) -> fx.Node:
        """The node that a node's values come from, past what only moves them."""
        while self._kind(node) in MOVES and node.args and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        return node

    def _join(self, bits: int) -> None:
        """Additions and the like that a quantized tensor meets another one in, until there are no more."""
        grown = True
        while grown:
            grown = False
            for node in self.graph.nodes:
                operands = [self.source(each) for each in node.all_input_nodes] if self._kind(node) in JOINS else []
                if len(operands) < 2 or not self.floats.issuperset(operands):
                    continue
                end = [node, *self._after(node)][-1]
                tensors = [*operands, end]
                if any(each in self.wanted for each in operands) and not all(each in self.wanted for each in tensors):
                    for each in tensors:
                        self.wanted.setdefault(each, bits)
                    grown = True

    def _after(self, node: fx.Node) -> list[fx.Node]:
        """The batch norm and the ReLU that follow a call, each where nothing else reads what is before it."""
        found: list[fx.Node] = []
        following = _only_user(node)
        if following is not None and isinstance(self._module(following), NORMS) and self._folds(node, following):
            found.append(following)
            following = _only_user(following)
        if following is not None and self._kind(following) in RELUS:
            found.append(following)
        return found

    def _folds(self, node: fx.Node, norm: fx.Node) -> bool:
        """Whether a batch norm can be folded into what is before it: a layer of as many output channels."""
        layer: Any = self._module(node)
        module: Any = self._module(norm)
        if not isinstance(layer, KINDS) or not getattr(module, "track_running_stats", False):
            return False
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd) and layer.groups > 1
        once = all(sum(each.target == call.target for each in self.graph.nodes) == 1 for call in (node, norm))
        weight: Any = layer.weight
        return once and not transposed and module.num_features == weight.shape[channel_axis(layer)]

    def _kind(self, node: Any) -> Any:
        """What a node does, as the sets above name it: the class of the module, the function, or the method's name."""
        if not isinstance(node, fx.Node):
            return None
        return type(self._module(node)) if node.op == "call_module" else node.target

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _said(self, node: fx.Node) -> str:
        return str(node.target) if node.op == "call_module" else getattr(node.target, "__name__", str(node.target))

    def _home(self, node: fx.Node) -> Home:
        if node in self.homes:
            return self.homes[node]
        path = node.meta.get("home", ("",))[0]
        raise self.reasons.get(path) or UsageError(
            f"qat: the forward of module {path!r} is another one when torch.fx traces it by itself: {ADVICE}"
        )


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
