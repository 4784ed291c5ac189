"""Checks before training: the model, and `on_check` of the plugins."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ..errors import UsageError
from ..models import freezing
from ..options import Stage
from ..plugin_manager import Plugins
from ..task import Task

OLD_STYLE = ("WeightNorm", "SpectralNorm")
"""forward hooks of torch's deprecated weight_norm and spectral_norm, which recompute the weight in each forward pass"""


def check_model(model: nn.Module) -> None:
    """Raise UsageError, with the name of the module, if a plain copy of the model cannot be rebuilt.

    This holds for parametrized, compiled and lazy modules.
    """
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        hooks = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}
        if parametrize.is_parametrized(module) or hooks & set(OLD_STYLE):
            raise UsageError(
                f"{where} already has a parametrization (weight_norm, …): remove it before training, with "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )
        if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
            raise UsageError(f"{where} is compiled: expected the model before torch.compile")
        if any(is_lazy(tensor) for tensor in [*module._parameters.values(), *module._buffers.values()]):
            raise UsageError(f"{where} is not initialised yet: call the model once on a batch before training")


def check_stages(stages: Sequence[Stage], model: nn.Module, batch: Any, task: Task) -> list[dict[str, str | None]]:
    """Call `on_check` of the plugins of all stages. Returns for each stage the plugins' lines by name.

    A plugin receives a copy of the model, or None if an earlier stage or another plugin of the stage may still change
    the structure. Raises UsageError if a plugin does.
    """
    decided, said = True, []
    for number, stage in enumerate(stages, 1):
        plugins = Plugins(stage.plugins)
        deciding = plugins.with_hook("on_structure")
        lines: dict[str, str | None] = {}
        if decided and stage.options.frozen:
            freezing.described(model, stage.options.frozen)  # raises UsageError
        for name in plugins.by_name:
            seen = copy.deepcopy(model) if decided and (not deciding or name == deciding[0]) else None
            try:
                lines[name] = plugins.call(
                    name, "on_check", options=stage.options, model=seen, batch=batch, task=task
                )  # fmt: skip
            except Exception as error:
                plugins.blame(error)
                if len(stages) > 1:
                    error.add_note(f"in stage {number}")
                raise
        decided = decided and not deciding
        said.append(lines)
    return said
