"""A module's forward with quantizers in it, generated from its own graph and put in the place of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from torch import Tensor, fx, nn

from makeweight.plugin import MakeweightError

from .tracing import Home, trace_alone

Quantizer = Callable[[Tensor], Tensor]
MARK = "_quantizers"
"""the attribute of a module with such a forward: the names of its quantizers"""


def attach(model: nn.Module, quantizers: Mapping[Home, Quantizer], training: bool = True) -> None:
    """Let the modules' forwards call a quantizer on the tensors that are named by module and name in its graph.

    The modules stay what they are, with their hooks, their parameters and their names; `detach` undoes it. Without
    `training` the forward is that of eval alone. Raises MakeweightError for a name that a module's graph has not, and
    for a forward that cannot be traced.
    """
    by_module: dict[str, dict[str, Quantizer]] = {}
    for (path, name), quantizer in quantizers.items():
        by_module.setdefault(path, {})[name] = quantizer
    for path, inside in by_module.items():
        module = model.get_submodule(path)
        forward = _generated(module, list(inside), path, training=False)
        if training:
            forward = _by_mode(_generated(module, list(inside), path, training=True), forward)
        module.__dict__["forward"] = MethodType(forward, module)
        for name, quantizer in inside.items():
            module.__dict__[_attribute(name)] = quantizer  # not a submodule: no name of the model's changes
        module.__dict__[MARK] = list(inside)


def detach(model: nn.Module) -> None:
    """Give every module its own forward back."""
    for module in model.modules():
        if MARK in module.__dict__:
            for name in module.__dict__.pop(MARK):
                del module.__dict__[_attribute(name)]
            del module.__dict__["forward"]


def _by_mode(trained: Callable[..., Any], evaluated: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        return (trained if self.training else evaluated)(self, *inputs, **named)

    return forward


def _generated(module: nn.Module, names: list[str], path: str, training: bool) -> Callable[..., Any]:
    graph = trace_alone(module, path, training)
    nodes = {node.name: node for node in graph.nodes}
    for name in names:
        if name not in nodes:
            raise MakeweightError(f"qat: the forward of module {path!r} has no tensor {name!r}: it is of another model")
        _insert(graph, nodes[name])
    source = graph.python_code("self")
    namespace = dict(source.globals)
    exec(source.src, namespace)  # torch.fx's own text of the graph, as its GraphModule runs it
    forward: Callable[..., Any] = namespace["forward"]
    return forward


def _insert(graph: fx.Graph, node: fx.Node) -> None:
    """Call the quantizer of a node's name on it, and give the result to all that read it."""
    last = node
    while last.op == "placeholder" and last.next.op == "placeholder":
        last = last.next
    with graph.inserting_after(last):
        quantized = graph.create_node("call_module", _attribute(node.name), (node,))
    node.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)


def _attribute(name: str) -> str:
    return f"_quantize_{name}"
