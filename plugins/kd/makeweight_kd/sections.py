"""Where a network is cut into sections: the modules after which a shallow classifier is put."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from makeweight import UsageError
from makeweight.errors import did_you_mean
from makeweight.layers import KINDS

MOST = 3
"""shallow classifiers of a network that has no stages: as many as a ResNet gets"""


def find_sections(model: nn.Module, called: Sequence[str], names: Sequence[str] | None = None) -> list[str]:
    """The names of the modules that end a section, in the order of the calls; the last section ends at the output.

    `called` are the modules' names in the order in which the model calls them.

    ResNets: the stages but the last. VGGs: every pooling of `features` but the last. Else: the layers (Linear, Conv)
    of a sequential network but the last one, at most three, evenly spread. `names` are globs that say it otherwise.
    Raises UsageError where a glob matches nothing, and where there is nothing to cut.
    """
    modules = {name: model.get_submodule(name) for name in called}
    if names is not None:
        return _named(modules, names)
    stages = [name for name in modules if name.startswith("layer") and name[5:].isdigit()]
    if len(stages) > 1:
        return stages[:-1]
    features = getattr(model, "features", None)
    if isinstance(features, nn.Sequential):
        pools = [name for name, child in features.named_children() if isinstance(child, nn.MaxPool2d)]
        if len(pools) > 1:
            return _spread([f"features.{name}" for name in pools[:-1]])
    layers = [name for name, module in modules.items() if isinstance(module, KINDS)]
    if len(layers) < 2:
        raise UsageError("kd: a network of one layer has no sections to teach: name a teacher with --kd.teacher")
    return _spread(layers[:-1])


def _spread(names: list[str]) -> list[str]:
    """At most MOST of the names, evenly spread, with the last one."""
    count = min(MOST, len(names))
    return [names[-(-(index + 1) * len(names) // count) - 1] for index in range(count)]


def _named(modules: dict[str, nn.Module], globs: Sequence[str]) -> list[str]:
    known = [name for name in modules if name]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in known):
            raise UsageError(f"kd.sections: no module matches {glob!r}: {did_you_mean(glob, known)}")
    return [name for name in known if any(fnmatchcase(name, glob) for glob in globs)]
