"""The network as a graph by torch.fx: as one whole, and each module's own forward by itself.

The whole graph shows what feeds what. It is not trained: hooks on modules would be passed over. What is trained is the
forward of single modules, with quantizers put in (`forwards.py`); so each call in the whole graph knows its `home`,
the module in whose forward it stands and its place among the calls there.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from makeweight.plugin import UsageError, evaluating

Home = tuple[str, str]
"""the path of a module, and a name in the graph of its own forward"""

CALLS = ("call_function", "call_method", "call_module")
ADVICE = "its activations cannot be quantized; weights alone can, with --qat.activations 0"


class Whole(fx.Tracer):
    """Traces into every module that is not torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[tuple[str, list[int]]] = [("", [0])]  # path of each open forward, and its calls so far
        self.deepest = ""  # where it failed, if it did

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
            node.meta["home"] = (path, calls[0])
            calls[0] += 1
        elif kind == "placeholder":
            node.meta["home"] = (path, node.name)
        return node


class Alone(fx.Tracer):
    """Traces one forward: every module that it calls is called."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def trace_whole(model: nn.Module) -> fx.Graph:
    """The graph of the model in eval. Raises UsageError, naming the module, for one that cannot be traced."""
    tracer = Whole()
    with evaluating(model):
        try:
            return tracer.trace(model)
        except Exception as error:  # a forward that is called with no tensors may raise anything
            raise _untraceable(tracer.deepest, error) from error


def trace_alone(module: nn.Module, path: str, training: bool) -> fx.Graph:
    """The graph of one module's forward as it is in training or in eval. Raises UsageError as `trace_whole` does."""
    with evaluating(module):
        module.training = training
        try:
            return Alone().trace(module)
        except Exception as error:  # as above
            raise _untraceable(path, error) from error


def calls_of(module: nn.Module, graph: fx.Graph) -> list[fx.Node]:
    """The nodes of a module's own forward that the whole graph has too, in its order: calls but of inner forwards."""
    leaf = fx.Tracer().is_leaf_module
    return [
        node for node in graph.nodes if node.op in CALLS
        and not (node.op == "call_module" and not leaf(module.get_submodule(str(node.target)), str(node.target)))
    ]  # fmt: skip


def homes_of(model: nn.Module, whole: fx.Graph) -> tuple[dict[fx.Node, Home], dict[str, UsageError]]:
    """The home of each call, and of each input, of the whole graph: its module's path and its name in its own graph.

    Calls of a module whose forward takes another way when it is traced by itself have none. Where it cannot be traced
    by itself at all, the reason stands, by path, in the second table: it matters only where a quantizer is wanted.
    """
    by_path: dict[str, list[fx.Node]] = {}
    for node in whole.nodes:
        if "home" in node.meta:
            by_path.setdefault(node.meta["home"][0], []).append(node)
    homes: dict[fx.Node, Home] = {}
    reasons: dict[str, UsageError] = {}
    for path, nodes in by_path.items():
        module = model.get_submodule(path)
        try:
            alone = calls_of(module, trace_alone(module, path, training=False))
        except UsageError as error:
            reasons[path] = error
            continue
        for node in nodes:
            place = node.meta["home"][1]
            if isinstance(place, str):
                homes[node] = (path, place)
            elif place < len(alone) and _same_call(path, node, alone[place]):
                homes[node] = (path, alone[place].name)
    return homes, reasons


def _same_call(path: str, node: fx.Node, alone: fx.Node) -> bool:
    target = f"{path}.{alone.target}" if alone.op == "call_module" and path else alone.target
    return (node.op, node.target) == (alone.op, target)


def _untraceable(path: str, error: Exception) -> UsageError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    where = f"module {path!r}" if path else "the model's own forward"
    return UsageError(f"qat: {where} cannot be traced by torch.fx ({reason}): {ADVICE}")
