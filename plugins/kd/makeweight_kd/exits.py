"""Exits: the classifiers of a network, its shallow ones and its deepest, used one by one or together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from makeweight import MakeweightError
from makeweight.plugin import logits_of

from .heads import Head
from .losses import log_mean_probability


class _Decided(Exception):  # noqa: N818
    """Ends a forward of which nothing is left to compute."""


class Exits:
    """The exits of a model in eval: `exits(x)` gives the logits of all of them, the deepest last.

    `sections` are the modules after which the heads stand, `numbers` how the exits are counted (from 1). The heads are
    no part of the model's state, and `model(x)` is what it was.
    """

    def __init__(self, model: nn.Module, sections: list[str], heads: list[Head], numbers: list[int]) -> None:
        self.model, self.sections, self.numbers = model, sections, numbers
        self.heads = nn.ModuleList(heads)

    def __call__(self, x: Any) -> list[Tensor]:
        """The logits of every exit, each [B, classes], the deepest last; `x` is a tensor, or a mapping of them."""
        found: list[Tensor] = []
        with self._watching(lambda index, output: found.append(self._head(index, output))):
            deepest = logits_of(_call(self.model, x))
        return [*found, deepest]

    def ensemble(self, x: Any) -> Tensor:
        """The logarithm of the mean probability of all exits, [B, classes]."""
        return log_mean_probability(self(x))

    def at(self, x: Any, index: int) -> Tensor:
        """The logits [B, classes] of one exit, counted from 0 in `sections`; what comes after it is not computed.

        Raises IndexError for one that there is not.
        """
        if not 0 <= index < len(self.sections):
            raise IndexError(f"exit {index}: expected 0 to {len(self.sections) - 1}; the deepest is the model itself")
        found: list[Tensor] = []

        def look(each: int, output: Tensor) -> None:
            if each == index:
                found.append(self._head(each, output))
                raise _Decided

        with self._watching(look), suppress(_Decided):
            _call(self.model, x)
        if found:
            return found[0]
        raise MakeweightError(f"exit {self.numbers[index]}: the model was called without {self.sections[index]!r}")

    def confident(self, x: Any, threshold: float) -> tuple[Tensor, Tensor]:
        """Each example's logits of the first exit whose largest probability reaches the threshold, else the deepest's.

        Returns the logits [B, classes] and the exits taken, int64 [B], counted from 0. An example that has left is
        taken out of the batch: what comes after its exit is not computed for it.
        """
        if self.model.training:
            raise MakeweightError("exits: the model is training: call model.eval() before it is asked to stop early")
        groups: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, logits and exit of those that left together
        rows: Tensor | None = None  # of those still in the batch

        def leave(index: int, logits: Tensor) -> Tensor:  # -> bool [B], who stays
            nonlocal rows
            sure = (logits.float().softmax(1).amax(1) >= threshold) | (index == len(self.sections))
            rows = torch.arange(len(logits), device=logits.device) if rows is None else rows
            groups.append((rows[sure], logits[sure], torch.full_like(rows[sure], index)))
            rows = rows[~sure]
            return ~sure

        def look(index: int, output: Tensor) -> Tensor | None:
            stay = leave(index, self._head(index, output))
            if not bool(stay.any()):
                raise _Decided
            return None if bool(stay.all()) else output[stay]

        with self._watching(look), suppress(_Decided):
            leave(len(self.sections), logits_of(_call(self.model, x)))
        order, logits, taken = (torch.cat(parts) for parts in zip(*groups, strict=True))
        return logits[order.argsort()], taken[order.argsort()]

    def _head(self, index: int, output: Tensor) -> Tensor:
        kind = next((each.dtype for each in self.model.parameters() if each.is_floating_point()), None)
        head = self.heads[index].to(output.device, dtype=kind).train(self.model.training)
        return head(output)

    @contextmanager
    def _watching(self, look: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
        """Call `look` with each section's index and output; what it returns, unless None, takes the output's place."""
        handles = [
            self.model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, index=index: look(index, output)
            )
            for index, name in enumerate(self.sections)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def exits_of(model: nn.Module) -> Exits:
    """The exits of a model that was loaded with them. Raises MakeweightError for one that was exported without."""
    found = getattr(model, "exits", None)
    if not isinstance(found, Exits):
        raise MakeweightError("the model has no exits: it was exported without them; --kd.exits all keeps them")
    return found


def _call(model: nn.Module, x: Any) -> Any:
    return model(**x) if isinstance(x, Mapping) else model(x)


class Way(nn.Module):
    """A way to run a model with exits, called as the model is: `function(exits, x)` gives logits, and maybe more."""

    def __init__(self, model: nn.Module, function: Callable[[Exits, Any], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Any, **named: Any) -> Tensor:  # -> [B, classes]
        found = self.function(exits_of(self.model), named or inputs[0])
        return found[0] if isinstance(found, tuple) else found


def ways(model: nn.Module, thresholds: Sequence[float], numbers: Sequence[int] = ()) -> dict[str, nn.Module]:
    """Each exit but the deepest, which is the model itself, the ensemble, and stopping early at each threshold.

    `numbers` are those of the exits that are wanted by themselves, all unless given.
    """
    found: dict[str, nn.Module] = {
        f"exit {number}": Way(model, partial(Exits.at, index=index))
        for index, number in enumerate(exits_of(model).numbers)
        if not numbers or number in numbers
    }
    found["ensemble"] = Way(model, Exits.ensemble)
    for threshold in thresholds:
        found[f"confidence {threshold:g}"] = Way(model, partial(Exits.confident, threshold=threshold))
    return found
