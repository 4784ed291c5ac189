"""Optimizers, their parameter groups and state, and the learning rate as a function of completed epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ..errors import UsageError, did_you_mean
from ..files.checked import MOST, checked_keys, checked_table, checked_tensor
from ..options import StageOptions


def parameter_groups(
    named: Mapping[str, nn.Parameter], asked: Iterable[tuple[list[str], dict[str, float]]], weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: the default group, then one group for each (globs, settings) in `asked`.

    A parameter belongs to the last group with a matching glob. Empty groups are left out. Raises UsageError for a glob
    without a match, and for a model without trainable parameters.
    """
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": weight_decay, "lr_scale": 1.0}]
    place = dict.fromkeys(named, 0)
    for globs, settings in asked:
        for glob in globs:
            matching = [name for name in named if fnmatchcase(name, glob)]
            if not matching:
                raise UsageError(f"no parameter matches {glob!r}: {did_you_mean(glob, named)}")
            place |= dict.fromkeys(matching, len(groups))
        groups.append({"params": [], **settings})
    for name, parameter in named.items():
        if parameter.requires_grad:
            groups[place[name]]["params"].append(parameter)
    if not any(group["params"] for group in groups):
        raise UsageError("the model has no parameter to train: all parameters are frozen")
    return [group for group in groups if group["params"]]


def build_optimizer(groups: list[dict[str, Any]], options: StageOptions) -> torch.optim.Optimizer:
    """A new optimizer over parameter groups, fused if the device has a fused kernel."""
    trained = [parameter for group in groups for parameter in group["params"]]
    fused = all(each.is_floating_point() and each.device.type in ("cpu", "cuda") for each in trained)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.peak_lr, fused=fused)
    return torch.optim.SGD(
        groups, lr=options.peak_lr, momentum=options.momentum, nesterov=options.momentum > 0, fused=fused
    )


def checked_state(optimizer: torch.optim.Optimizer, saved: Any) -> dict[str, Any]:
    """An optimizer state dict with the tensors of `saved` and the parameter groups of `optimizer`.

    Raises ValueError if a tensor is missing or its shape or dtype differs from that of its parameter: fused kernels do
    not check this and would write out of bounds.
    """
    own = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = ["step", "exp_avg", "exp_avg_sq"] if isinstance(optimizer, torch.optim.AdamW) else ["momentum_buffer"]
    states = _of_parameters(saved, len(parameters))
    for number, state in states.items():
        checked_keys(checked_table(state), names)
        for name in names:
            if name == "step":
                step = checked_tensor(state, name, shape=(), dtype=torch.float32)
                if not 1 <= float(step) < MOST:
                    raise ValueError(f"step of parameter {number} is {float(step):g}")
            else:
                parameter = parameters[number]
                checked_tensor(state, name, parameter.shape, parameter.dtype)
    if states and "momentum_buffer" in names:  # the fused kernel needs buffers for all parameters or for none
        empty = {number: {names[0]: torch.zeros_like(each)} for number, each in enumerate(parameters)}
        states = empty | states
    return {"state": states, "param_groups": own["param_groups"]}


def _of_parameters(saved: Any, count: int) -> dict[int, Any]:
    """The states by parameter number, 0 to `count` - 1. Raises ValueError."""
    states = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(states, dict) or not all(type(number) is int and 0 <= number < count for number in states):
        raise ValueError(f"expected a table of states by parameter number, 0 to {count - 1}")
    return states


def learning_rate(options: StageOptions, done: float) -> float:
    """The learning rate after `done` epochs of the stage. It is stateless, so resuming does not affect it.

    A linear warm-up from 0 precedes the schedule over the remaining epochs: constant; × gamma at each milestone; linear
    to 0; or cosine to 0 (Loshchilov & Hutter 2017, eq. 5, without restarts).
    """
    if done < options.warmup:
        return options.peak_lr * done / options.warmup
    remaining = options.epochs - options.warmup
    passed = (done - options.warmup) / remaining if remaining else 1.0
    milestones = options.milestones or [options.epochs / 2, options.epochs * 3 / 4]
    match options.schedule:
        case "cosine":
            factor = (1 + math.cos(math.pi * passed)) / 2
        case "linear":
            factor = 1 - passed
        case "step":
            factor = options.gamma ** sum(done >= milestone for milestone in milestones)
        case "constant":
            factor = 1.0
    return options.peak_lr * factor
