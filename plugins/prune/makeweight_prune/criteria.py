"""Pruning criteria: sparsity, threshold by quality, N:M pattern. Each makes masks and checks the export."""

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
    """A target for each pruned layer, the masks that reach it, and the check at export.

    The *amount* of a layer is the value that the schedule raises to its target: a sparsity, or a quality.
    """

    word: ClassVar[str]
    """name of the option"""
    targets: dict[str, float]
    """final amount by layer name"""
    skipped: str = ""
    """note on layers that the criterion cannot prune, or empty"""

    @abstractmethod
    def start(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        """Amounts by layer at the start of a stage, given the masks of earlier stages."""

    def amount(self, start: float, target: float, schedule: str, done: float, rounds: int) -> float:
        """Amount of one layer at the fraction `done` of the schedule."""
        return scheduled(schedule, start, target, done, rounds)

    def amounts(self, start: Mapping[str, float], schedule: str, done: float, rounds: int) -> dict[str, float]:
        """Amounts of all layers at the fraction `done` of the schedule; the initial amounts before it (`done` < 0)."""
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
        """Bool masks by layer, of the weights' shapes; True keeps a weight.

        `scores` are magnitudes; a negative score marks a weight that must stay pruned.
        """

    @abstractmethod
    def check(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], reached: Mapping[str, float]) -> None:
        """Raise MakeweightError if the exported weights, by layer, miss the targets. `reached`: the masks' amounts."""

    def shown(self) -> str:
        """The targets as text for people."""
        return ", ".join(f"{name} {target:.4g}" for name, target in self.targets.items())


class Sparsity(Criterion):
    """Prune the smallest weights: a fraction of each layer, or of all layers together."""

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
                    f"sparsity of {', '.join(names)} is {found / total:.4f}, expected at least {target:g}: "
                    "pruned weights were changed, or training stopped before prune.end"
                )

    def shown(self) -> str:
        together = f"{max(self.targets.values()):.4g} of {', '.join(self.targets)} together"
        return together if self.whole else super().shown()


class Quality(Criterion):
    """Prune weights below a multiple of the layer's standard deviation."""

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
                raise MakeweightError(f"quality {amounts[name]:.3g} prunes every weight of {name}: choose a lower one")
        return found

    def check(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], reached: Mapping[str, float]) -> None:
        for name, target in self.targets.items():
            if reached.get(name, 0.0) < target:
                raise MakeweightError(
                    f"quality of {name} reached {reached.get(name, 0.0):.3g}, expected {target:.3g}: "
                    "training stopped before prune.end"
                )
            if name not in masks:  # a quality of 0
                continue
            found, expected = magnitude.zeros({name: tensors[name]}), magnitude.zeros({name: masks[name]})
            if found < expected:
                raise MakeweightError(
                    f"{name} has {found:,} zeros, expected {expected:,}: weights that its threshold pruned were changed"
                )


class Pattern(Criterion):
    """Keep at most N of every M weights along the input channels."""

    word = "pattern"

    def __init__(self, options: PruneOptions, model: nn.Module) -> None:
        assert options.pattern is not None
        modules, globs = layers(model), list(options.pattern) if isinstance(options.pattern, dict) else [options.layers]
        patterns: dict[str, str] = by_glob(model, options.pattern, options.layers)
        self.patterns = {name: parsed(each) for name, each in patterns.items()}
        indivisible = [name for name, (_, m) in self.patterns.items() if pattern.inputs(modules[name]) % m]
        for name in indivisible:
            n, m = self.patterns.pop(name)
            if any(glob != "*" and fnmatchcase(name, glob) for glob in globs):
                raise UsageError(
                    f"prune.pattern {n}:{m}: {name} has {pattern.inputs(modules[name])} input channels, "
                    f"expected a multiple of {m}: exclude this layer"
                )
        if not self.patterns:
            raise UsageError(f"prune.pattern {options.pattern}: no layer has a multiple of M input channels")
        names = ", ".join(indivisible)
        self.skipped = f"skipped, input channels not a multiple of M: {names}" if names else ""
        self.dimensions = {name: pattern.input_dimension(modules[name]) for name in self.patterns}
        self.targets = {name: 1 - n / m for name, (n, m) in self.patterns.items()}

    def start(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        masked = {name: magnitude.measured({name: masks[name]}) for name in self.targets if name in masks}
        return {name: min(sparsity, self.targets[name]) for name, sparsity in masked.items()}

    def masks(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], amounts: Mapping[str, float]
    ) -> dict[str, Tensor]:
        found = {}
        for name, score in scores.items():
            m = self.patterns[name][1]
            dropped = int(m * amounts[name] + 1e-6)  # weights per group; the schedule removes them one at a time
            found[name] = pattern.pattern_mask(score, m, dropped, self.dimensions[name]) & (score >= 0)
        return found

    def check(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], reached: Mapping[str, float]) -> None:
        for name, (n, m) in self.patterns.items():
            found = pattern.most_kept(tensors[name], m, self.dimensions[name])
            if found > n:
                raise MakeweightError(
                    f"{name} has {found} nonzero weights in a group of {m}, expected at most {n}: "
                    "pruned weights were changed, or training stopped before prune.end"
                )

    def shown(self) -> str:
        return ", ".join(f"{name} {n}:{m}" for name, (n, m) in self.patterns.items())


def criterion_for(options: PruneOptions, model: nn.Module) -> Criterion:
    """The criterion that the options select. Raises UsageError for a glob that matches no layer."""
    if options.quality is not None:
        return Quality(options, model)
    return Pattern(options, model) if options.pattern is not None else Sparsity(options, model)


def described(options: PruneOptions, criterion: Criterion, model: nn.Module) -> str:
    """One line for people: the number of weights and layers, the target of each layer, and the schedule."""
    if not any(criterion.targets.values()):
        return "prunes nothing"
    modules = layers(model)
    weights = sum(leaf_weight(modules[name]).numel() for name in criterion.targets)
    rounds = f" in {options.rounds or 5} rounds" if options.schedule == "iterative" else ""
    scope = f", by {options.scope}" if criterion.word == "sparsity" else ""
    how = f"({options.schedule}{rounds}{scope}{', with surgery' if options.surgery else ''})"
    skipped = f"; {criterion.skipped}" if criterion.skipped else ""
    return (
        f"{weights:,} weights of {len(criterion.targets)} layers, {criterion.word} {criterion.shown()} {how}{skipped}"
    )
