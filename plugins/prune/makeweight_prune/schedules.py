"""How what is asked for is approached over a stage."""

from __future__ import annotations

import math


def left_over(schedule: str, done: float, rounds: int = 1) -> float:
    """The share of the way that is still to go, 1 to 0, when a fraction `done` of the schedule has passed.

    cubic: (1 - t)^3; linear: 1 - t; one-shot: 0; iterative: of `rounds` equal steps, evenly spaced, the first is taken
    at t = 0 and the last at t = 1.
    """
    t = min(max(done, 0.0), 1.0)
    if schedule == "one-shot":
        return 0.0
    if schedule == "iterative":
        return 1 - (1 + math.floor(t * (rounds - 1) + 1e-9)) / rounds
    return (1 - t) ** 3 if schedule == "cubic" else 1 - t


def scheduled(schedule: str, initial: float, final: float, done: float, rounds: int = 1) -> float:
    """The sparsity to have when a fraction `done` of the schedule has passed, from `initial` at 0 to `final` at 1.

    cubic: s_f + (s_i - s_f)(1 - t)^3, "automated gradual pruning" (Zhu & Gupta 2017, eq. 1); linear: s_f + (s_i - s_f)
    (1 - t); one-shot: all of it at the start; iterative: each round drops the same share of the weights that are left,
    so that (1 - s_f) / (1 - s_i) is spread over the rounds as a power. It never falls.
    """
    left = left_over(schedule, done, rounds)
    if left == 0:
        return max(initial, final)
    if schedule == "iterative":
        return max(initial, 1 - (1 - initial) ** left * (1 - final) ** (1 - left))
    return max(initial, final + (initial - final) * left)
