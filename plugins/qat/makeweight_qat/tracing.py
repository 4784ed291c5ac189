"""Trace the network with torch.fx: the whole model as one graph, and each module's own forward as a graph.

The graph of the whole model shows the data flow, from which quantizers are planned. It is not run in training, because
it would skip the modules' hooks. Training runs the modules' own forwards with quantizers inserted (forwards.py), so
each node of the whole graph is mapped to its site: the module whose forward makes the call, and the name of the tensor
in the graph of that forward.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from makeweight.plugin import UsageError, evaluating

Site = tuple[str, str]
"""identifies a tensor: the path of a module, and a node name in the graph of that module's own forward"""

CALLS = ("call_function", "call_method", "call_module")
ADVICE = "its activations cannot be quantized: --qat.activations 0 quantizes only the weights"


class ModelTracer(fx.Tracer):
    """Traces the whole model, into every module that is not one of torch's. Records where each call is made."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[tuple[str, list[int]]] = [("", [0])]  # the path of each open forward, its calls so far
        self.deepest = ""  # the innermost open forward, also after a failure

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        self.inside.append((path, [0]))
        self.deepest = path
        output = super().call_module(m, forward, args, kwargs)
        self.inside.pop()
        self.deepest = self.inside[-1][0]
        return output

    def create_node(self, kind: str, *arguments: Any, **named: Any) -> fx.Node:
        node = super().create_node(kind, *arguments, **named)
        path, calls = self.inside[-1]
        if kind in CALLS:
            node.meta["place"] = (path, calls[0])
            calls[0] += 1
        elif kind == "placeholder":
            node.meta["place"] = (path, node.name)
        return node


class ForwardTracer(fx.Tracer):
    """Traces one module's forward: the modules that it calls remain calls."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def trace_model(model: nn.Module) -> fx.Graph:
    """The graph of the whole model in eval mode. Raises UsageError, with the module's path, where tracing fails."""
    tracer = ModelTracer()
    with evaluating(model):
        try:
            return tracer.trace(model)
        except Exception as error:  # a forward that is called with proxies may raise anything
            raise _untraceable(tracer.deepest, error) from error


def trace_forward(module: nn.Module, path: str, training: bool) -> fx.Graph:
    """The graph of one module's forward, in training or eval mode. Raises UsageError as `trace_model` does."""
    with evaluating(module):
        module.training = training
        try:
            return ForwardTracer().trace(module)
        except Exception as error:  # as above
            raise _untraceable(path, error) from error


def own_calls(module: nn.Module, graph: fx.Graph) -> list[fx.Node]:
    """The calls in the graph of a module's forward, without those of modules that `ModelTracer` traces into.

    In the same order they are the calls that the whole graph has from this forward.
    """
    leaf = fx.Tracer().is_leaf_module
    return [
        node for node in graph.nodes if node.op in CALLS
        and not (node.op == "call_module" and not leaf(module.get_submodule(str(node.target)), str(node.target)))
    ]  # fmt: skip


def sites_of(model: nn.Module, whole: fx.Graph) -> tuple[dict[fx.Node, Site], dict[str, UsageError]]:
    """Sites of the calls and inputs in the whole graph, and errors by path of modules that cannot be traced alone.

    A call has no site if its module's forward makes other calls when it is traced alone. Such a forward, or one that
    cannot be traced alone, is an error only if it needs a quantizer.
    """
    by_path: dict[str, list[fx.Node]] = {}
    for node in whole.nodes:
        if "place" in node.meta:
            by_path.setdefault(node.meta["place"][0], []).append(node)
    sites: dict[fx.Node, Site] = {}
    reasons: dict[str, UsageError] = {}
    for path, nodes in by_path.items():
        module = model.get_submodule(path)
        try:
            calls = own_calls(module, trace_forward(module, path, training=False))
        except UsageError as error:
            reasons[path] = error
            continue
        for node in nodes:
            place = node.meta["place"][1]  # the name of an input, or the index of a call
            if isinstance(place, str):
                sites[node] = (path, place)
            elif place < len(calls) and _same_call(path, node, calls[place]):
                sites[node] = (path, calls[place].name)
    return sites, reasons


def _same_call(path: str, node: fx.Node, call: fx.Node) -> bool:
    target = f"{path}.{call.target}" if call.op == "call_module" and path else call.target
    return (node.op, node.target) == (call.op, target)


def _untraceable(path: str, error: Exception) -> UsageError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    where = f"module {path!r}" if path else "the model's own forward"
    return UsageError(f"qat: {where} cannot be traced by torch.fx ({reason}): {ADVICE}")
