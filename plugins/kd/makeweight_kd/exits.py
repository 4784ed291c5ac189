"""Early exits: a network's shallow classifiers and its deepest one, used one by one or together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from makeweight.plugin import MakeweightError, logits_of

from .heads import Head
from .losses import log_mean_probability


class _StopForward(Exception):  # noqa: N818
    """Ends a forward early: every example has its logits."""


class Exits:
    """The exits of a model in eval mode: `exits(x)` gives the logits of all of them, the deepest last.

    `sections` are the modules whose outputs the heads read, `numbers` the exits' numbers, counted from 1 at the input.
    The heads are not in the model's state dict, and `model(x)` is unchanged. `x` is a tensor, or a mapping of the
    model's named inputs.
    """

    def __init__(self, model: nn.Module, sections: list[str], heads: list[Head], numbers: list[int]) -> None:
        self.model, self.sections, self.numbers = model, sections, numbers
        self.heads = nn.ModuleList(heads)

    def __call__(self, x: Any) -> list[Tensor]:
        """The logits of every exit, each [B, classes], the deepest last."""
        found: list[Tensor] = []
        with self._watching(lambda index, output: found.append(self._head(index, output))):
            deepest = logits_of(_call(self.model, x))
        return [*found, deepest]

    def ensemble(self, x: Any) -> Tensor:
        """The logarithm of the mean probability of all exits, [B, classes]."""
        return log_mean_probability(self(x))

    def at(self, x: Any, index: int) -> Tensor:
        """The logits [B, classes] of the exit `index`, counted from 0; the network after it is not computed.

        Raises IndexError for an index outside `sections`, MakeweightError where the forward does not reach the exit.
        """
        if not 0 <= index < len(self.sections):
            raise IndexError(f"exit {index}: expected 0 to {len(self.sections) - 1}; the deepest is the model itself")
        found: list[Tensor] = []

        def stop_at_exit(each: int, output: Tensor) -> None:
            if each == index:
                found.append(self._head(each, output))
                raise _StopForward

        with self._watching(stop_at_exit), suppress(_StopForward):
            _call(self.model, x)
        if found:
            return found[0]
        raise MakeweightError(f"exit {self.numbers[index]}: the model's forward did not call {self.sections[index]!r}")

    def confident(self, x: Any, threshold: float) -> tuple[Tensor, Tensor]:
        """Each example's logits at the first exit whose largest probability reaches `threshold`, else at the deepest.

        Returns the logits [B, classes] and the index of the exit taken, int64 [B], counted from 0. An example that
        exits is removed from the batch: the rest of the network is not computed for it. Raises MakeweightError for a
        model in training mode.
        """
        if self.model.training:
            raise MakeweightError("exits: the model is in training mode: call model.eval() first")
        groups: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, logits and exits of the examples that left at one exit
        rows: Tensor | None = None  # the original rows of the examples still in the batch

        def leave(index: int, logits: Tensor) -> Tensor:  # -> bool [B], examples that stay
            nonlocal rows
            sure = (logits.float().softmax(1).amax(1) >= threshold) | (index == len(self.sections))
            rows = torch.arange(len(logits), device=logits.device) if rows is None else rows
            groups.append((rows[sure], logits[sure], torch.full_like(rows[sure], index)))
            rows = rows[~sure]
            return ~sure

        def remove_confident(index: int, output: Tensor) -> Tensor | None:
            stay = leave(index, self._head(index, output))
            if not bool(stay.any()):
                raise _StopForward
            return None if bool(stay.all()) else output[stay]

        with self._watching(remove_confident), suppress(_StopForward):
            leave(len(self.sections), logits_of(_call(self.model, x)))
        order, logits, taken = (torch.cat(parts) for parts in zip(*groups, strict=True))
        return logits[order.argsort()], taken[order.argsort()]

    def _head(self, index: int, output: Tensor) -> Tensor:
        dtype = next((each.dtype for each in self.model.parameters() if each.is_floating_point()), None)
        head = self.heads[index].to(output.device, dtype=dtype).train(self.model.training)
        logits: Tensor = head(output)
        return logits

    @contextmanager
    def _watching(self, hook: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
        """Call `hook` with each section's index and output; a tensor that it returns replaces the output."""
        handles = [
            self.model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, index=index: hook(index, output)
            )
            for index, name in enumerate(self.sections)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def exits_of(model: nn.Module) -> Exits:
    """`model.exits`, the exits that the model was loaded with. Raises MakeweightError for a model without exits."""
    found = getattr(model, "exits", None)
    if not isinstance(found, Exits):
        raise MakeweightError("the model has no exits: it was exported without --kd.exits")
    return found


def _call(model: nn.Module, x: Any) -> Any:
    return model(**x) if isinstance(x, Mapping) else model(x)


class ExitPolicy(nn.Module):
    """A model run by one policy for its exits, with the model's call signature.

    `function(exits, x)` returns the logits [B, classes], or a tuple that begins with them.
    """

    def __init__(self, model: nn.Module, function: Callable[[Exits, Any], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Any, **named: Any) -> Tensor:  # -> [B, classes]
        found = self.function(exits_of(self.model), named or inputs[0])
        return found[0] if isinstance(found, tuple) else found


def exit_policies(model: nn.Module, thresholds: Sequence[float], numbers: Sequence[int] = ()) -> dict[str, nn.Module]:
    """The policies to evaluate, by label: each shallow exit, the ensemble, and early exit at each threshold.

    `numbers` selects shallow exits; empty selects all of them. The deepest exit is the model itself and not included.
    """
    found: dict[str, nn.Module] = {
        f"exit {number}": ExitPolicy(model, partial(Exits.at, index=index))
        for index, number in enumerate(exits_of(model).numbers)
        if not numbers or number in numbers
    }
    found["ensemble"] = ExitPolicy(model, Exits.ensemble)
    for threshold in thresholds:
        found[f"confidence {threshold:g}"] = ExitPolicy(model, partial(Exits.confident, threshold=threshold))
    return found
