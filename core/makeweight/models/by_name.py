"""Builds models by name, with input and output sizes from the data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import UsageError, did_you_mean
from ..references import import_installed, resolve
from .lenets import LeNet5, LeNet300
from .resnets import RESNETS

OWN: dict[str, Callable[..., nn.Module]] = {"lenet300": LeNet300, "lenet5": LeNet5, **RESNETS}


SMALLEST = {"lenet300": 1, "lenet5": 28, **dict.fromkeys(RESNETS, 8)}


SMALLEST_OTHER = 32


CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def smallest_image(name: str) -> int:
    """The minimum height and width of images for a model in pixels; 1 for models of the user."""
    return 1 if is_reference(name) else SMALLEST.get(name, SMALLEST_OTHER)


def is_reference(name: str) -> bool:
    """Whether a model name has the form `package.module:function`."""
    return ":" in name and not name.startswith("timm:")


def check(name: str) -> None:
    """Raise UsageError for an unknown model name. Called before any data is read."""
    if name in OWN:
        return
    if name.startswith("timm:"):
        _timm_name(name)
    elif is_reference(name) or name.endswith(".py"):
        resolve(name, "model")
    elif name not in _torchvision_names():
        raise UsageError(f"unknown model {name!r}: {did_you_mean(name, [*OWN, *_torchvision_names()])}")


def build(name: str, input_shape: tuple[int, ...], num_classes: int | None, seed: int = 0) -> nn.Module:
    """A newly initialised model for examples of shape `input_shape`, (C, H, W) for images.

    A function `package.module:function` is called with those of the arguments input_shape, in_channels and num_classes
    that it accepts. Raises UsageError if the model is unknown or does not fit the data.
    """
    check(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if is_reference(name):
            return _from_reference(name, input_shape, num_classes)
        if num_classes is None or len(input_shape) != 3:
            raise UsageError(
                f"model {name} needs images [C, H, W] and the number of classes: the data has "
                f"{list(input_shape)} and {num_classes}; return makeweight.Data(train, test, num_classes=…)"
            )
        if name in OWN:
            return OWN[name](input_shape, num_classes)
        if name.startswith("timm:"):
            timm: Any = import_installed("timm")
            model: nn.Module = timm.create_model(_timm_name(name), num_classes=num_classes, in_chans=input_shape[0])
            return model
        return _from_torchvision(name, input_shape[0], num_classes)


def _from_reference(name: str, input_shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
    function = resolve(name, "model")
    offered = {"input_shape": input_shape, "in_channels": input_shape[0] if input_shape else 1,
               "num_classes": num_classes}  # fmt: skip
    taken = {key: value for key, value in offered.items() if key in inspect.signature(function).parameters}
    model = function(**taken)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name} returned a {type(model).__name__}: expected a torch.nn.Module")
    return model


def _from_torchvision(name: str, in_channels: int, num_classes: int) -> nn.Module:
    from torchvision.models import get_model

    # By default, these two models return auxiliary outputs in training mode.
    extra: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return with_input_channels(get_model(name, weights=None, num_classes=num_classes, **extra), in_channels)


def with_input_channels(model: nn.Module, in_channels: int) -> nn.Module:
    """The model; its first convolution is replaced by a new one if its number of input channels differs."""
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            if conv.in_channels != in_channels:
                settings: Any = {key: getattr(conv, key) for key in CONVOLUTION}
                fresh = nn.Conv2d(in_channels, conv.out_channels, bias=conv.bias is not None, **settings)
                model.set_submodule(name, fresh)
            break
    return model


def _torchvision_names() -> list[str]:
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _timm_name(name: str) -> str:
    try:
        timm: Any = import_installed("timm")
    except ImportError as error:
        raise UsageError(f"model {name} needs timm: pip install 'makeweight[timm]'") from error
    known = timm.list_models()
    short = name.removeprefix("timm:")
    architecture, tagged, _ = short.partition(".")
    if architecture not in known:
        raise UsageError(f"unknown model {name!r}: {did_you_mean(short, known)}")
    try:
        timm.models.get_pretrained_cfg(short if tagged else architecture)
    except RuntimeError as error:  # an unknown tag
        trained = timm.list_models(f"{architecture}.*", pretrained=True)
        raise UsageError(f"unknown model {name!r}: {did_you_mean(short, trained)}") from error
    return short
