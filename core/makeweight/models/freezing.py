"""Frozen modules: their parameters get no gradient, and their batch norm statistics stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from ..errors import UsageError, did_you_mean
from .modes import begin_training


def matching(model: nn.Module, globs: Iterable[str]) -> dict[str, nn.Module]:
    """The modules below the model itself whose names match one of the globs, in the model's order.

    A module inside another one that matches is left out. Raises UsageError for a glob without a match.
    """
    named = {name: module for name, module in model.named_modules() if name}
    found: set[str] = set()
    for glob in globs:
        names = [name for name in named if fnmatchcase(name, glob)]
        if not names:
            raise UsageError(f"freeze {glob}: no module matches: {did_you_mean(glob, named)}")
        found.update(names)
    return {name: module for name, module in named.items() if name in found and not _is_inside(name, found)}


def _is_inside(name: str, others: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:depth]) in others for depth in range(1, len(parts)))


def freeze(model: nn.Module, globs: Iterable[str]) -> None:
    """Freeze the modules that match: without gradient, and in eval mode throughout training.

    A model that is in eval mode as a whole is first put into training mode, as the trainer does with it.
    """
    begin_training(model)
    for module in matching(model, globs).values():
        module.requires_grad_(False)
        module.eval()


def described(model: nn.Module, globs: Iterable[str]) -> str:
    """A line on the frozen modules and their number of parameters. Raises UsageError if nothing is left to train."""
    modules = matching(model, globs)
    inside = {id(each) for module in modules.values() for each in module.parameters()}
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad and id(each) not in inside)
    if not trained:
        raise UsageError(f"freeze {','.join(globs)}: all parameters are frozen: expected some that are trained")
    frozen = sum(each.numel() for each in model.parameters() if id(each) in inside)
    whole = sum(each.numel() for each in model.parameters())
    names = list(modules)
    more = f" and {len(names) - 8} more modules" if len(names) > 8 else ""
    return f"frozen: {', '.join(names[:8])}{more}, {frozen:,} of {whole:,} parameters"
