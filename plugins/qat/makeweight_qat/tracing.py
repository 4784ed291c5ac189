"""The network as a graph by torch.fx: as one whole, and each module's own forward by itself.

The whole graph shows what feeds what. It is not run: hooks on modules would be passed over. What is run is the forward
of single modules, with quantizers put in (`forwards.py`); so each call in the whole graph knows its `home`, the
module in whose forward it stands and its place among the calls there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from makeweight import UsageError

CALLS = ("call_function", "call_method", "call_module")


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
    with _mode(model, training=False):
        try:
            return tracer.trace(model)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            where = f"module {tracer.deepest!r}" if tracer.deepest else "the model's own forward"
            raise UsageError(
                f"qat: {where} cannot be traced by torch.fx ({reason}): its activations cannot be quantized; "
                "weights alone can, with --qat.activations 0"
            ) from error


def trace_alone(module: nn.Module, training: bool) -> fx.Graph:
    """The graph of one module's forward as it is in training or in eval."""
    with _mode(module, training, deep=False):
        return Alone().trace(module)


def calls_of(module: nn.Module, graph: fx.Graph) -> list[fx.Node]:
    """The nodes of a module's own forward that the whole graph has too, in its order: calls but of inner forwards."""
    leaf = fx.Tracer().is_leaf_module
    return [
        node for node in graph.nodes if node.op in CALLS
        and not (node.op == "call_module" and not leaf(module.get_submodule(str(node.target)), str(node.target)))
    ]  # fmt: skip


def names_at_home(model: nn.Module, whole: fx.Graph) -> dict[fx.Node, tuple[str, str]]:
    """For each call, and each input, of the whole graph: its module's path, and its name in that module's own graph.

    A module whose forward takes another way when it is traced alone is left out.
    """
    by_path: dict[str, list[fx.Node]] = {}
    for node in whole.nodes:
        if "home" in node.meta:
            by_path.setdefault(node.meta["home"][0], []).append(node)
    named = {}
    for path, nodes in by_path.items():
        module = model.get_submodule(path)
        try:
            alone = calls_of(module, trace_alone(module, training=False))
        except Exception:  # whatever a forward may raise that is called with no tensors
            continue
        for node in nodes:
            place = node.meta["home"][1]
            if isinstance(place, str):
                named[node] = (path, place)
            elif place < len(alone) and _same_call(path, node, alone[place]):
                named[node] = (path, alone[place].name)
    return named


def _same_call(path: str, node: fx.Node, alone: fx.Node) -> bool:
    target = f"{path}.{alone.target}" if alone.op == "call_module" and path else alone.target
    return (node.op, node.target) == (alone.op, target)


@contextmanager
def _mode(module: nn.Module, training: bool, deep: bool = True) -> Iterator[None]:
    modules = list(module.modules()) if deep else [module]
    modes = [each.training for each in modules]
    for each in modules:
        each.training = training
    try:
        yield
    finally:
        for each, mode in zip(modules, modes, strict=True):
            each.training = mode
