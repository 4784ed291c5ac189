from __future__ import annotations

import pytest

from makeweight_prune.schedules import left_over, scheduled


def test_each_iterative_round_prunes_the_same_fraction_of_the_remaining_weights() -> None:
    """99 % in two rounds is 90 %, then 90 % of the rest. From an initial 50 %, the rounds divide the remaining half."""
    seen = [scheduled("iterative", 0.0, 0.99, done, rounds=2) for done in (0.0, 0.5, 0.99, 1.0, 2.0)]
    assert seen == pytest.approx([0.9, 0.9, 0.9, 0.99, 0.99])
    densities = [1 - scheduled("iterative", 0.5, 0.98, done / 4, rounds=5) for done in range(5)]
    ratios = [low / high for high, low in zip([0.5, *densities], densities, strict=False)]
    assert ratios == pytest.approx([(0.02 / 0.5) ** (1 / 5)] * 5)


def test_iterative_rounds_are_evenly_spaced_from_begin_to_end() -> None:
    seen = [left_over("iterative", done / 100, rounds=5) for done in range(101)]
    changes = [number for number in range(1, 101) if seen[number] != seen[number - 1]]
    assert changes == [25, 50, 75, 100]
    assert [seen[number] for number in (0, 25, 50, 75, 100)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    assert left_over("iterative", 0.0, rounds=1) == 0.0


@pytest.mark.parametrize("schedule", ["cubic", "linear", "one-shot", "iterative"])
def test_a_schedule_ends_at_exactly_its_target(schedule: str) -> None:
    assert [scheduled(schedule, 0.3, final, 1.0, 7) for final in (0.7, 0.9, 0.975)] == [0.7, 0.9, 0.975]
    values = [scheduled(schedule, 0.3, 0.9, step / 50, 7) for step in range(-5, 60)]
    assert values == sorted(values)
