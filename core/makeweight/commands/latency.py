"""Measures the latency of models alternately, so that background load affects all of them equally."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch

WARM_UP, FEWEST, MOST = 2, 5, 200
"""number of warm-up rounds, and minimum and maximum number of measured rounds"""


@dataclass(frozen=True)
class Latency:
    """Statistics of the duration of a call in seconds."""

    median: float
    spread: float
    """interquartile range"""
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        low, middle, high = quantiles(seconds, n=4, method="inclusive")
        return cls(middle, high - low, len(seconds))


def latencies(
    calls: Sequence[Callable[[Any], Any]], batches: Sequence[Any], device: torch.device, budget: float = 2.0
) -> list[list[float]]:
    """The duration of each call in each round, in seconds: [calls][rounds].

    In a round, every call runs once on the same batch; rounds cycle through `batches`. The measurement ends after the
    minimum number of rounds and an average of `budget` seconds per call.
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
    """The speed-up over the reference: the median over rounds of the ratio of the two durations in the same round."""
    return median(slow / fast for fast, slow in zip(seconds, reference, strict=True))


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
