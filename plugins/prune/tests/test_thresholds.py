from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from makeweight import LoopOptions, MakeweightError, Trainer, UsageError
from makeweight.models.lenets import LeNet300
from makeweight_prune import Prune
from makeweight_prune.thresholds import above
from tests.helpers import run_stages


def trainer(*plugins: object, epochs: int = 4, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    data = (torch.randn(320, 1, 8, 8), torch.randint(0, 10, (320,)))
    return Trainer(LeNet300((1, 8, 8), 10), data, plugins=plugins, batch_size=32, epochs=epochs, **settings)


def sparsity(run: Trainer, layer: str) -> float:
    return float((run.model.get_parameter(f"{layer}.weight") == 0).float().mean())


def test_the_sparsity_of_normal_weights_is_the_error_function_of_the_quality() -> None:
    """The fraction erf(q / sqrt 2) of a normal distribution lies within q standard deviations."""
    torch.manual_seed(0)
    weight = 0.03 * torch.randn(1000, 400)
    for quality in (0.0, 0.5, 1.0, 2.0):
        dropped = 1 - float(above(weight.abs(), weight, quality).float().mean())
        assert dropped == pytest.approx(math.erf(quality / math.sqrt(2)), abs=2e-3)


def test_the_threshold_is_quality_times_the_standard_deviation_of_all_weights_of_the_layer() -> None:
    weight = torch.tensor([-2.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0])  # standard deviation 1, zeros included
    assert (above(weight.abs(), weight, 0.999) == (weight.abs() >= 1)).all()
    assert (above(weight.abs(), weight, 1.001) == (weight.abs() >= 2)).all()
    assert above(weight.abs(), weight, 0.0).all()


def test_one_shot_drops_the_initial_weights_below_the_threshold() -> None:
    run = trainer(Prune(quality={"fc*": 1.0, "fc3": 0.5}, schedule="one-shot"))
    before = {name: layer.weight.detach().numpy().copy() for name, layer in run.layers().items()}  # type: ignore[operator]
    metrics = run.fit()
    for name, quality in (("fc1", 1.0), ("fc2", 1.0), ("fc3", 0.5)):
        expected = np.abs(before[name]) < quality * before[name].std()
        assert 0.2 < expected.mean() < 0.8
        assert np.array_equal(run.model.get_parameter(f"{name}.weight").detach().numpy() == 0, expected)
        assert metrics[f"sparsity/{name}"] == pytest.approx(expected.mean())


def test_rounds_raise_the_threshold_step_by_step_and_retrain_between() -> None:
    run = trainer(Prune(quality=1.2, schedule="iterative", rounds=3, begin=1, end=3, every=1), weight_decay=0.01)
    seen = []

    def look(batch: Any, output: Any) -> torch.Tensor:
        seen.append((run.model.get_parameter("fc1.weight") == 0).clone())
        result: torch.Tensor = output.sum() * 0
        return result

    run.losses["look"] = look
    run.fit()
    counts = [int(mask.sum()) for mask in seen]
    assert counts[9] == 0
    changes = [step for step in range(1, 40) if counts[step] != counts[step - 1]]
    assert changes == [10, 20, 30]  # the first steps after epochs 1, 2 and 3
    assert all(not (before & ~after).any() for before, after in pairwise(seen))
    # Initial weights are uniform: a fraction of 0.4 / sqrt 3 lies below the first threshold, 0.4 standard deviations.
    assert counts[10] / seen[0].numel() == pytest.approx(0.4 / math.sqrt(3), abs=0.02)


def test_a_quality_is_checked_at_export(tmp_path: Any) -> None:
    run = trainer(Prune(quality=1.0))
    run.fit()
    run.export(tmp_path / "good.safetensors")
    run.model.get_parameter("fc2.weight").data.fill_(1.0)
    with pytest.raises(
        MakeweightError, match=r"fc2 has 0 zeros, expected [\d,]+: weights that its threshold pruned were changed"
    ):
        run.export(tmp_path / "model.safetensors")
    run = trainer(Prune(quality=1.0, end=4))

    def stop(batch: Any, output: Any) -> torch.Tensor:
        run.stop("enough")
        result: torch.Tensor = output.sum() * 0
        return result

    run.losses["stop"] = stop
    run.fit()
    with pytest.raises(MakeweightError, match=r"quality of fc1 reached 0\.\d+, expected 1: training stopped"):
        run.export(tmp_path / "model.safetensors")


def test_a_quality_that_drops_a_whole_layer_is_an_error() -> None:
    with pytest.raises(MakeweightError, match=r"quality 9 prunes every weight of fc\d: choose a lower one"):
        trainer(Prune(quality=9.0, schedule="one-shot")).fit()


def test_a_stage_may_skip_pruning_and_the_next_one_continues() -> None:
    first = trainer()
    seen: list[float] = []
    stages = [
        (1, Prune(quality=0.0)),
        (2, Prune(quality=1.0, schedule="one-shot")),
        (1, Prune(quality=0.0)),
        (1, Prune(sparsity=0.9, schedule="one-shot")),
    ]
    run_stages(
        first.model, (first.batches.data.columns), *((LoopOptions(epochs=epochs, batch_size=32), {"prune": plugin})
        for epochs, plugin in stages), watch=lambda run: seen.append(sparsity(run, "fc1")),
    )  # fmt: skip
    assert seen[:10] == [0.0] * 10
    assert 0.4 < seen[10] < 0.7
    assert seen[10:40] == [seen[10]] * 30
    assert seen[40:] == pytest.approx([0.9] * 10, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": -1}, "quality -1: expected 0 <= quality < 1000 standard deviations"),
        ({"quality": {"fc1": float("nan")}}, "quality fc1 nan: expected 0 <= quality < 1000"),
        ({"quality": 1.0, "sparsity": 0.5}, "sparsity and quality are both given: expected one of them"),
        ({"quality": 1.0, "pattern": "2:4"}, "quality and pattern are both given"),
        ({"quality": 1.0, "scope": "global"}, "scope global: expected one number for sparsity, got quality 1"),
        ({"rounds": 0, "schedule": "iterative"}, "rounds 0: expected at least 1"),
        ({"rounds": 3}, "rounds 3: expected only with schedule iterative, not cubic"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Prune(**options)
