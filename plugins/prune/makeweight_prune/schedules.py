"""Schedules: how the sparsity rises to its target over a stage."""

from __future__ import annotations

import math


def left_over(schedule: str, done: float, rounds: int = 1) -> float:
    """Remaining fraction, from 1 to 0, at the fraction t = `done` of the schedule (clipped to 0 … 1).

    cubic: (1 - t)^3. linear: 1 - t. one-shot: 0. iterative: `rounds` equal steps, evenly spaced, the first at t = 0 and
    the last at t = 1.
    """
    t = min(max(done, 0.0), 1.0)
    if schedule == "one-shot":
        return 0.0
    if schedule == "iterative":
        return 1 - (1 + math.floor(t * (rounds - 1) + 1e-9)) / rounds
    return (1 - t) ** 3 if schedule == "cubic" else 1 - t


def scheduled(schedule: str, initial: float, final: float, done: float, rounds: int = 1) -> float:
    """Sparsity at the fraction t = `done` of the schedule, from s_i = `initial` to s_f = `final`. It never falls.

    cubic: s_f + (s_i - s_f)(1 - t)^3, "automated gradual pruning" (Zhu & Gupta 2017, equation 1). linear:
    s_f + (s_i - s_f)(1 - t). one-shot: s_f from the start. iterative: every round prunes the same fraction of the
    remaining weights, so that k of n rounds leave a density of (1 - s_i) ((1 - s_f) / (1 - s_i))^(k/n).
    """
    left = left_over(schedule, done, rounds)
    if left == 0:
        return max(initial, final)
    if schedule == "iterative":
        result: float = max(initial, 1 - (1 - initial) ** left * (1 - final) ** (1 - left))
        return result
    return max(initial, final + (initial - final) * left)
