"""What may be asked for: a sparsity, thresholds by quality, or an N:M pattern; each with its promise at export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from makeweight import MakeweightError, UsageError
from makeweight.layers import by_glob, layers, leaf_weight

from . import magnitude, pattern, sharing, thresholds
from .schedules import left_over, scheduled

if TYPE_CHECKING:
    from .curves import Curves
    from .plugin import Prune


class Criterion(ABC):
    """What is asked of the layers of a model, each by a number: `targets`."""

    word: ClassVar[str]
    targets: dict[str, float]
    left_out: str = ""
    """what is said of layers that cannot be pruned so"""

    @abstractmethod
    def start(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        """The numbers that a stage begins with, by the masks that there are."""

    def amount(self, start: float, target: float, schedule: str, done: float, rounds: int) -> float:
        """The number to have when a fraction `done` of the schedule has passed."""
        return scheduled(schedule, start, target, done, rounds)

    @abstractmethod
    def masks(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], amounts: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Bool masks by layer: True keeps. Scores are the weights' magnitudes, negative what must stay dropped."""

    @abstractmethod
    def check(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], reached: Mapping[str, float]) -> None:
        """Raise MakeweightError where the exported weights, by layer, are not what was asked for."""

    def shown(self) -> str:
        """The targets as people write them."""
        return ", ".join(f"{name} {target:.4g}" for name, target in self.targets.items())


class Sparsity(Criterion):
    """The smallest weights, a share of each layer's or of all layers' together."""

    word = "sparsity"

    def __init__(self, plugin: Prune, model: nn.Module, curves: Curves | None) -> None:
        sparsity = 0.9 if plugin.sparsity is None else plugin.sparsity
        self.whole = plugin.scope == "global"
        self.targets = by_glob(model, sparsity, plugin.layers)
        if curves is not None:
            assert isinstance(sparsity, float | int)
            key = (sparsity, *self.targets)
            if key not in curves.shares:
                sizes = {name: leaf_weight(module).numel() for name, module in layers(model).items()}
                curves.shares[key] = sharing.share_out(curves.of(sizes, self.targets), sparsity, curves.path)
            self.targets = curves.shares[key]

    def start(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        if self.whole:
            return dict.fromkeys(self.targets, magnitude.measured(masks) if masks else 0.0)
        return {name: magnitude.measured({name: masks[name]}) for name in self.targets if name in masks}

    def masks(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], amounts: Mapping[str, float]
    ) -> dict[str, Tensor]:
        if self.whole:
            return magnitude.global_masks(scores, max(amounts.values()))
        return magnitude.layer_masks(scores, amounts)

    def check(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], reached: Mapping[str, float]) -> None:
        together = [(list(self.targets), max(self.targets.values()))]
        groups = together if self.whole else [([name], target) for name, target in self.targets.items()]
        for names, target in groups:
            found = magnitude.zeros({name: tensors[name] for name in names})
            total = sum(tensors[name].numel() for name in names)
            if found < round(target * total):
                raise MakeweightError(
                    f"sparsity of {', '.join(names)} is {found / total:.4f} where {target:g} was asked for: "
                    "dropped weights came back, or training stopped before prune.end"
                )

    def shown(self) -> str:
        together = f"{max(self.targets.values()):.4g} of {', '.join(self.targets)} together"
        return together if self.whole else super().shown()


class Quality(Criterion):
    """What is below a multiple of the layer's standard deviation."""

    word = "quality"

    def __init__(self, plugin: Prune, model: nn.Module) -> None:
        assert plugin.quality is not None
        self.targets = by_glob(model, plugin.quality, plugin.layers)

    def start(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def amount(self, start: float, target: float, schedule: str, done: float, rounds: int) -> float:
        return target * (1 - left_over(schedule, done, rounds))

    def masks(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], amounts: Mapping[str, float]
    ) -> dict[str, Tensor]:
        found = {name: thresholds.above(scores[name], weights[name], amounts[name]) for name in weights}
        for name, mask in found.items():
            if not mask.any():
                raise MakeweightError(f"quality {amounts[name]:.3g} drops every weight of {name}: give a lower one")
        return found

    def check(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], reached: Mapping[str, float]) -> None:
        for name, target in self.targets.items():
            if reached.get(name, 0.0) < target:
                raise MakeweightError(
                    f"quality of {name} has risen to {reached.get(name, 0.0):.3g} where {target:.3g} was asked for: "
                    "training stopped before prune.end"
                )
            if name not in masks:  # a quality of 0
                continue
            found, asked = magnitude.zeros({name: tensors[name]}), magnitude.zeros({name: masks[name]})
            if found < asked:
                raise MakeweightError(
                    f"{name} has {found:,} zeros where its threshold dropped {asked:,} weights: they came back"
                )


class Pattern(Criterion):
    """At most N of every M weights along the input channels."""

    word = "pattern"

    def __init__(self, plugin: Prune, model: nn.Module) -> None:
        assert plugin.pattern is not None
        modules, globs = layers(model), list(plugin.pattern) if isinstance(plugin.pattern, dict) else [plugin.layers]
        asked: dict[str, str] = by_glob(model, plugin.pattern, plugin.layers)
        self.asked = {name: pattern.parsed(each) for name, each in asked.items()}
        odd = [name for name, (_, m) in self.asked.items() if pattern.inputs(modules[name]) % m]
        for name in odd:
            n, m = self.asked.pop(name)
            if any(glob != "*" and fnmatchcase(name, glob) for glob in globs):
                raise UsageError(
                    f"prune.pattern {n}:{m}: {name} has {pattern.inputs(modules[name])} input channels, "
                    f"no multiple of {m}: leave it out"
                )
        if not self.asked:
            raise UsageError(f"prune.pattern {plugin.pattern}: no layer's input channels are a multiple of it")
        self.left_out = f"left out, as their input channels are no multiple: {', '.join(odd)}" if odd else ""
        self.dimensions = {name: pattern.input_dimension(modules[name]) for name in self.asked}
        self.targets = {name: 1 - n / m for name, (n, m) in self.asked.items()}

    def start(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        there = {name: magnitude.measured({name: masks[name]}) for name in self.targets if name in masks}
        return {name: min(sparsity, self.targets[name]) for name, sparsity in there.items()}

    def masks(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], amounts: Mapping[str, float]
    ) -> dict[str, Tensor]:
        found = {}
        for name, score in scores.items():
            m = self.asked[name][1]
            dropped = int(m * amounts[name] + 1e-6)  # a group loses its next weight when the schedule has reached it
            found[name] = pattern.pattern_mask(score, m, dropped, self.dimensions[name]) & (score >= 0)
        return found

    def check(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], reached: Mapping[str, float]) -> None:
        for name, (n, m) in self.asked.items():
            found = pattern.most_kept(tensors[name], m, self.dimensions[name])
            if found > n:
                raise MakeweightError(
                    f"{name} has {found} weights in a group of {m} where {n}:{m} was asked for: "
                    "dropped weights came back, or training stopped before prune.end"
                )

    def shown(self) -> str:
        return ", ".join(f"{name} {n}:{m}" for name, (n, m) in self.asked.items())
