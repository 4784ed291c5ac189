"""Optimizers by name, and the learning rate as a function of the epochs done: it has no state to be resumed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .options import StageOptions


def build_optimizer(parameters: Iterable[nn.Parameter], options: StageOptions) -> torch.optim.Optimizer:
    """A new optimizer over these parameters, fused where the device has such a kernel."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    fused = all(each.is_floating_point() and each.device.type in ("cpu", "cuda") for each in trained)
    common = {"lr": options.peak_lr, "weight_decay": options.weight_decay, "fused": fused}
    if options.optimizer == "adamw":
        return torch.optim.AdamW(trained, **common)  # type: ignore[arg-type]
    return torch.optim.SGD(trained, momentum=options.momentum, nesterov=options.momentum > 0, **common)  # type: ignore[arg-type]


def checked_state(optimizer: torch.optim.Optimizer, saved: Any) -> dict[str, Any]:
    """A state dict with the tensors of a saved one and the groups of this optimizer.

    Raises ValueError where a tensor has not the shape of its parameter: fused kernels would write beyond it.
    """
    own = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, state in saved["state"].items():
        for name, tensor in state.items():
            expected = () if name == "step" else parameters[number].shape
            if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != tuple(expected):
                raise ValueError(f"{name} of parameter {number} has not the shape {list(expected)}")
            if not tensor.is_floating_point():
                raise ValueError(f"{name} of parameter {number} is of {tensor.dtype}")
    return {"state": saved["state"], "param_groups": own["param_groups"]}


def learning_rate(options: StageOptions, done: float) -> float:
    """The rate of the step that begins when `done` epochs of the stage are over.

    Linear warm-up from 0, then over what remains: constant; ÷ by 1/gamma at each milestone; linear to 0; or half a
    cosine to 0 (Loshchilov & Hutter 2017, eq. 5, without restarts).
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
