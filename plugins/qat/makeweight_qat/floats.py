"""Find the nodes of a model's graph that output floating-point tensors: only these can be quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from makeweight.plugin import Task, UsageError, evaluating

from .tracing import ADVICE


def float_nodes(model: nn.Module, graph: fx.Graph, batch: Any, task: Task) -> set[fx.Node]:
    """The nodes that output floating-point tensors, found by running the graph on two examples of the batch.

    Raises UsageError where the task passes the model's inputs by name.
    """
    calls: list[tuple[Any, Any]] = []
    handle = model.register_forward_pre_hook(lambda module, args, named: calls.append((args, named)), with_kwargs=True)
    with evaluating(model), torch.no_grad(), torch.random.fork_rng():
        try:
            task.forward(model, _few(batch))
        finally:
            handle.remove()
        if not calls or calls[0][1]:
            raise UsageError(f"qat: expected a model with positional inputs, it is called with named ones: {ADVICE}")
        run = fx.Interpreter(model, garbage_collect_values=False, graph=graph)
        run.run(*calls[0][0])
    return {node for node, value in run.env.items() if isinstance(value, Tensor) and value.is_floating_point()}


def _few(batch: Any) -> Any:
    """The first two examples of a batch."""
    if isinstance(batch, dict):
        return {name: each[:2] for name, each in batch.items()}
    return [each[:2] for each in batch]
