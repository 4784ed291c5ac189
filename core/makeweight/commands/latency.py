"""How long models take for an answer, measured in turns, so that a machine's moods fall on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch

WARM_UP, FEWEST, MOST = 2, 5, 200
"""rounds that are not counted, and how many are at least and at most"""


@dataclass(frozen=True)
class Latency:
    """Seconds that a call took."""

    median: float
    spread: float
    """between the quartiles"""
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        low, middle, high = quantiles(seconds, n=4, method="inclusive")
        return cls(middle, high - low, len(seconds))


def latencies(
    calls: Sequence[Callable[[Any], Any]], batches: Sequence[Any], device: torch.device, budget: float = 2.0
) -> list[list[float]]:
    """Seconds of each call in each round; a round is every call once, on the same batch of `batches`, in turn.

    Ends when the calls have had `budget` seconds each, but for a least number of rounds.
    """
    times: list[list[float]] = [[] for _ in calls]
    for number in range(WARM_UP + MOST):
        if number >= WARM_UP + FEWEST and sum(map(sum, times)) > budget * len(calls):
            break
        for call, seconds in zip(calls, times, strict=True):
            _wait(device)
            begun = perf_counter()
            call(batches[number % len(batches)])
            _wait(device)
            if number >= WARM_UP:
                seconds.append(perf_counter() - begun)
    return times


def times_as_fast(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """The median over the rounds of how many times longer the reference took in the same round."""
    return median(slow / fast for fast, slow in zip(seconds, reference, strict=True))


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
