"""What may be asked for: a sparsity, thresholds by quality, or an N:M pattern; each with its promise at export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import Tensor, nn

from makeweight import MakeweightError, UsageError
from makeweight.plugin import by_glob, layers, leaf_weight

from . import magnitude, pattern, sharing, thresholds
from .curves import read
from .options import PruneOptions, parsed
from .schedules import left_over, scheduled


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

    def amounts(self, start: Mapping[str, float], schedule: str, done: float, rounds: int) -> dict[str, float]:
        """The same for every layer; before the schedule begins (`done` < 0) what the stage began with."""
        return {
            name: self.amount(start.get(name, 0.0), target, schedule, done, rounds)
            if done >= 0
            else start.get(name, 0.0)
            for name, target in self.targets.items()
        }

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

    def __init__(self, options: PruneOptions, model: nn.Module) -> None:
        sparsity = 0.9 if options.sparsity is None else options.sparsity
        self.whole = options.scope == "global"
        self.targets = by_glob(model, sparsity, options.layers)
        if options.sensitivity is not None:
            assert isinstance(sparsity, float | int)
            curves = read(options.sensitivity)
            sizes = {name: leaf_weight(module).numel() for name, module in layers(model).items()}
            self.targets = sharing.share_out(curves.of(sizes, self.targets), sparsity, curves.path)

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

    def __init__(self, options: PruneOptions, model: nn.Module) -> None:
        assert options.quality is not None
        self.targets = by_glob(model, options.quality, options.layers)

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

    def __init__(self, options: PruneOptions, model: nn.Module) -> None:
        assert options.pattern is not None
        modules, globs = layers(model), list(options.pattern) if isinstance(options.pattern, dict) else [options.layers]
        asked: dict[str, str] = by_glob(model, options.pattern, options.layers)
        self.asked = {name: parsed(each) for name, each in asked.items()}
        odd = [name for name, (_, m) in self.asked.items() if pattern.inputs(modules[name]) % m]
        for name in odd:
            n, m = self.asked.pop(name)
            if any(glob != "*" and fnmatchcase(name, glob) for glob in globs):
                raise UsageError(
                    f"prune.pattern {n}:{m}: {name} has {pattern.inputs(modules[name])} input channels, "
                    f"no multiple of {m}: leave it out"
                )
        if not self.asked:
            raise UsageError(f"prune.pattern {options.pattern}: no layer's input channels are a multiple of it")
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


def criterion_for(options: PruneOptions, model: nn.Module) -> Criterion:
    """What is asked for, by layer. Raises UsageError for a glob that matches no layer."""
    if options.quality is not None:
        return Quality(options, model)
    return Pattern(options, model) if options.pattern is not None else Sparsity(options, model)


def described(options: PruneOptions, criterion: Criterion, model: nn.Module) -> str:
    """A line for people: how many weights of which layers, what is asked of each, and how."""
    if not any(criterion.targets.values()):
        return "prunes nothing"
    modules = layers(model)
    weights = sum(leaf_weight(modules[name]).numel() for name in criterion.targets)
    rounds = f" in {options.rounds or 5} rounds" if options.schedule == "iterative" else ""
    scope = f", by {options.scope}" if criterion.word == "sparsity" else ""
    how = f"({options.schedule}{rounds}{scope}{', with surgery' if options.surgery else ''})"
    left_out = f"; {criterion.left_out}" if criterion.left_out else ""
    return (
        f"{weights:,} weights of {len(criterion.targets)} layers, {criterion.word} {criterion.shown()} {how}{left_out}"
    )
