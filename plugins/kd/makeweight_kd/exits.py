"""Exits: the classifiers of a network, its shallow ones and its deepest, used one by one or together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from makeweight import MakeweightError
from makeweight.task import logits_of

from .heads import Head
from .losses import log_mean_probability


class _Decided(Exception):  # noqa: N818
    """Ends a forward of which nothing is left to compute."""


class Exits:
    """The exits of a model in eval: `exits(x)` gives the logits of all of them, the deepest last.

    `sections` are the modules after which the heads stand, `numbers` how the exits are counted (from 1). The heads are
    no part of the model's state, and `model(x)` is what it was.
    """

    def __init__(
        self, model: nn.Module, sections: Sequence[str], heads: Sequence[Head], numbers: Sequence[int]
    ) -> None:
        self.model, self.sections, self.numbers = model, list(sections), list(numbers)
        self.heads = nn.ModuleList(heads)

    def __call__(self, x: Any) -> list[Tensor]:
        """The logits of every exit, each [B, classes], the deepest last; `x` is a tensor, or a mapping of them."""
        found: list[Tensor] = []

        def look(index: int, output: Tensor) -> None:
            found.append(self._head(index, output))

        with self._watching(look):
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

        with self._watching(look):
            try:
                _call(self.model, x)
            except _Decided:
                return found[0]
        raise MakeweightError(f"exit {self.numbers[index]}: the model was called without {self.sections[index]!r}")

    def confident(self, x: Any, threshold: float) -> tuple[Tensor, Tensor]:
        """Each example's logits of the first exit whose largest probability reaches the threshold, else the deepest's.

        Returns the logits [B, classes] and the exits taken, int64 [B], counted from 0. An example that has left is
        taken out of the batch: what comes after its exit is not computed for it.
        """
        if self.model.training:
            raise MakeweightError("exits: the model is training: call model.eval() before it is asked to stop early")
        answers = _Answers()

        def look(index: int, output: Tensor) -> Tensor | None:
            logits = self._head(index, output)
            sure = logits.float().softmax(1).amax(1) >= threshold
            answers.leave(logits, sure, index)
            if bool(sure.all()):
                raise _Decided
            return output[~sure] if bool(sure.any()) else None

        with self._watching(look):
            try:
                deepest = logits_of(_call(self.model, x))
                answers.leave(deepest, torch.ones(len(deepest), dtype=torch.bool, device=deepest.device),
                              len(self.sections))  # fmt: skip
            except _Decided:
                pass
        return answers.logits, answers.taken

    def _head(self, index: int, output: Tensor) -> Tensor:
        kind = next((each.dtype for each in self.model.parameters() if each.is_floating_point()), None)
        head = self.heads[index].to(output.device, dtype=kind).train(self.model.training)
        return head(output)

    @contextmanager
    def _watching(self, look: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
        """Call `look` with each section's index and output; what it returns, unless None, takes the output's place."""

        def hook_of(index: int) -> Callable[..., Tensor | None]:
            return lambda module, inputs, output: look(index, output)

        handles = [
            self.model.get_submodule(name).register_forward_hook(hook_of(index))
            for index, name in enumerate(self.sections)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Answers:
    """The logits of the examples of a batch, which leave it in groups."""

    def __init__(self) -> None:
        self.left: Tensor | None = None  # the rows of those still in the batch
        self.groups: list[tuple[Tensor, Tensor, int]] = []  # rows, logits, exit

    def leave(self, logits: Tensor, sure: Tensor, index: int) -> None:
        rows = torch.arange(len(logits), device=logits.device) if self.left is None else self.left
        self.groups.append((rows[sure], logits[sure], index))
        self.left = rows[~sure]

    @property
    def logits(self) -> Tensor:
        return torch.cat([logits for _, logits, _ in self.groups])[self._order]

    @property
    def taken(self) -> Tensor:
        groups = [torch.full_like(rows, index) for rows, _, index in self.groups]
        return torch.cat(groups)[self._order]

    @property
    def _order(self) -> Tensor:
        return torch.cat([rows for rows, _, _ in self.groups]).argsort()


def exits_of(model: nn.Module) -> Exits:
    """The exits of a model that was loaded with them. Raises MakeweightError for one that was exported without."""
    found = getattr(model, "exits", None)
    if not isinstance(found, Exits):
        raise MakeweightError("the model has no exits: it was exported without them; --kd.exits all keeps them")
    return found


def check_rows(model: nn.Module, sections: Sequence[str], forward: Callable[[], Any]) -> str | None:
    """Whether examples can leave a batch after each of these modules: what goes wrong, None where nothing does.

    `forward` calls the model, in eval, on two examples or more. Every second one is taken out after each module.
    """
    whole = logits_of(forward())
    for name in sections:
        handle = model.get_submodule(name).register_forward_hook(lambda module, inputs, output: output[::2])
        try:
            rest = logits_of(forward())
        except (RuntimeError, ValueError, IndexError) as error:
            return f"after {name} no example can leave the batch ({str(error).partition(chr(10))[0]})"
        finally:
            handle.remove()
        if rest.shape != whole[::2].shape or not torch.allclose(rest, whole[::2], rtol=1e-3, atol=1e-3):
            return f"after {name} no example can leave the batch: the others' logits change with it"
    return None


def _call(model: nn.Module, x: Any) -> Any:
    return model(**x) if isinstance(x, Mapping) else model(x)


class Way(nn.Module):
    """A way to run a model with exits, called as the model is: `function(exits, x)` gives logits [B, classes]."""

    def __init__(self, model: nn.Module, function: Callable[[Exits, Any], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        return self.function(exits_of(self.model), named or inputs[0])


def ways(model: nn.Module, thresholds: Sequence[float], numbers: Sequence[int] = ()) -> dict[str, nn.Module]:
    """Each exit but the deepest, which is the model itself, the ensemble, and stopping early at each threshold.

    `numbers` are those of the exits that are wanted by themselves, all unless given.
    """
    exits = exits_of(model)

    def at(index: int) -> Callable[[Exits, Any], Tensor]:
        return lambda each, x: each.at(x, index)

    def confident(threshold: float) -> Callable[[Exits, Any], Tensor]:
        return lambda each, x: each.confident(x, threshold)[0]

    found: dict[str, nn.Module] = {
        f"exit {number}": Way(model, at(index))
        for index, number in enumerate(exits.numbers)
        if not numbers or number in numbers
    }
    found["ensemble"] = Way(model, lambda each, x: each.ensemble(x))
    return found | {f"confidence {threshold:g}": Way(model, confident(threshold)) for threshold in thresholds}
