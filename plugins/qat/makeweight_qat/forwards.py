"""Replace modules' forwards by ones that call quantizers, generated from each module's own torch.fx graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from torch import Tensor, fx, nn

from makeweight.plugin import MakeweightError

from .tracing import Site, trace_forward

Quantizer = Callable[[Tensor], Tensor]
MARK = "_quantizers"
"""attribute of a module with a replaced forward: the names of its quantizers"""


def attach(model: nn.Module, quantizers: Mapping[Site, Quantizer], training: bool = True) -> None:
    """Replace the forwards of modules so that they call a quantizer on the tensor at each site.

    Modules keep their class, hooks, parameters and names; `detach` restores their forwards. With `training` False, the
    forward of eval mode is used in both modes. Raises MakeweightError for a name that is not in the module's graph, and
    UsageError for a forward that cannot be traced.
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
            module.__dict__[_attribute(name)] = quantizer  # not a submodule: the model's names stay the same
        module.__dict__[MARK] = list(inside)


def detach(model: nn.Module) -> None:
    """Restore every module's own forward."""
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
    graph = trace_forward(module, path, training)
    nodes = {node.name: node for node in graph.nodes}
    for name in names:
        if name not in nodes:
            raise MakeweightError(f"qat: the forward of module {path!r} has no tensor {name!r}: it is another model")
        _insert(graph, nodes[name])
    source = graph.python_code("self")
    namespace = dict(source.globals)
    exec(source.src, namespace)  # the source that torch.fx generates for a GraphModule
    forward: Callable[..., Any] = namespace["forward"]
    return forward


def _insert(graph: fx.Graph, node: fx.Node) -> None:
    """Call the node's quantizer on it, and replace the node by the result in all its uses."""
    last = node
    while last.op == "placeholder" and last.next.op == "placeholder":
        last = last.next
    with graph.inserting_after(last):
        quantized = graph.create_node("call_module", _attribute(node.name), (node,))
    node.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)


def _attribute(name: str) -> str:
    return f"_quantize_{name}"
