from __future__ import annotations

from typing import Any

import pytest
import torch

from makeweight import LoopOptions, MakeweightError, Trainer, UsageError
from makeweight.models.lenets import LeNet300
from makeweight_prune import Prune
from tests.helpers import run_stages


def trainer(*plugins: object, epochs: int = 3, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    data = (torch.randn(320, 1, 8, 8), torch.randint(0, 10, (320,)))
    return Trainer(LeNet300((1, 8, 8), 10), data, plugins=plugins, batch_size=32, epochs=epochs, **settings)


def sparsities(run: Trainer) -> dict[str, float]:
    return {name: float((layer.weight == 0).float().mean()) for name, layer in run.layers().items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("schedule", ["cubic", "linear", "one-shot"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_target_sparsity_is_reached(schedule: Any, scope: Any) -> None:
    run = trainer(Prune(sparsity=0.8, schedule=schedule, scope=scope))
    metrics = run.fit()
    assert metrics["sparsity"] == pytest.approx(0.8, abs=1e-4)
    if scope == "layer":
        assert sparsities(run) == pytest.approx({"fc1": 0.8, "fc2": 0.8, "fc3": 0.8}, abs=1e-6)
    else:
        assert sparsities(run)["fc3"] < 0.8 < max(sparsities(run).values())


def test_a_table_applies_its_last_match_and_leaves_the_rest_alone() -> None:
    run = trainer(Prune(sparsity={"fc*": 0.5, "fc2": 0.9, "fc1": 0.25}))
    run.fit()
    assert sparsities(run) == pytest.approx({"fc1": 0.25, "fc2": 0.9, "fc3": 0.5}, abs=1e-4)
    run = trainer(Prune(sparsity={"fc2": 0.9}))
    run.fit()
    assert sparsities(run) == pytest.approx({"fc1": 0, "fc2": 0.9, "fc3": 0}, abs=1e-4)


def test_nothing_is_pruned_before_begin_and_all_of_it_by_end() -> None:
    seen = []

    def look(batch: Any, output: Any) -> torch.Tensor:  # a loss term sees the weights of every step
        seen.append(sparsities(run)["fc1"])
        result: torch.Tensor = output.sum() * 0
        return result

    run = trainer(Prune(sparsity=0.8, begin=1, end=2, every=1, schedule="linear"), epochs=4)
    run.losses["look"] = look
    run.fit()
    assert seen[:10] == [0.0] * 10  # the first epoch
    assert seen[10:20] == sorted(seen[10:20])
    assert 0.3 < seen[15] < 0.5
    assert seen[21:] == pytest.approx([0.8] * 19, abs=1e-6)


def test_dropped_weights_stay_zero_under_momentum_and_weight_decay() -> None:
    run = trainer(Prune(sparsity=0.9, schedule="one-shot"), epochs=2, weight_decay=0.1, lr=0.1)
    first: dict[str, torch.Tensor] = {}

    def same_zeros(batch: Any, output: Any) -> torch.Tensor:
        zeros = {name: layer.weight == 0 for name, layer in run.layers().items()}
        first.update(first or zeros)  # type: ignore[arg-type]
        assert all(torch.equal(zeros[name], first[name]) for name in zeros)  # type: ignore[arg-type]
        result: torch.Tensor = output.sum() * 0
        return result

    run.losses["same zeros"] = same_zeros
    run.fit()


def test_the_export_holds_no_negative_zero(tmp_path: Any) -> None:
    run = trainer(Prune(sparsity=0.9))
    run.fit()
    artifact = run.export(tmp_path / "model.safetensors")
    assert artifact is not None
    for name in ("fc1", "fc2", "fc3"):
        tensor = artifact.tensors[f"{name}.weight"]
        assert not (torch.signbit(tensor) & (tensor == 0)).any()


def test_a_sparsity_that_was_undone_is_an_error_at_export(tmp_path: Any) -> None:
    run = trainer(Prune(sparsity=0.9))
    run.fit()
    run.model.fc2.weight.data.fill_(1.0)  # type: ignore[union-attr,operator]
    with pytest.raises(MakeweightError, match=r"sparsity of fc2 is 0\.0000, expected at least 0\.9"):
        run.export(tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_masks_are_kept_on_the_weight_behind_a_parametrization() -> None:
    from torch import nn
    from torch.nn.utils import parametrize

    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    run = trainer(Prune(sparsity=0.75))
    parametrize.register_parametrization(run.model.fc1, "weight", Doubled())  # type: ignore[arg-type]
    run.fit()
    assert sparsities(run)["fc1"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.5}, "sparsity 1.5: expected 0 <= sparsity < 1"),
        ({"sparsity": {"fc1": -1}}, "sparsity fc1 -1: expected 0 <= sparsity < 1"),
        ({"scope": "global", "sparsity": {"fc1": 0.5}}, "scope global: expected one number"),
        ({"begin": -1}, "begin -1: expected an epoch"),
        ({"begin": 2, "end": 1}, "end 1: expected an epoch at or after begin 2"),
        ({"every": 0}, "every 0: expected at least 1 step"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        Prune(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "nope*"}, "no layer matches 'nope\\*': choose from fc1, fc2, fc3"),
        ({"sparsity": {"fc": 0.5}}, "no layer matches 'fc': did you mean"),
        ({"begin": 3}, "prune.begin 3: expected less than the 3 epochs"),
        ({"end": 4}, "prune.end 4: expected at most the 3 epochs"),
    ],
)
def test_options_that_do_not_fit_the_run_are_refused_before_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trainer(Prune(**options)).set_up()


def test_stages_prune_on_from_where_the_last_one_ended() -> None:
    first = trainer()
    seen: list[float] = []
    run = run_stages(
        first.model, first.batches.data.columns,
        (LoopOptions(epochs=2, batch_size=32), {"prune": Prune(sparsity=0.5)}),
        (LoopOptions(epochs=2, batch_size=32), {"prune": Prune(sparsity=0.9, schedule="linear", end=2)}),
        watch=lambda run: seen.append(sparsities(run)["fc1"]),
    )  # fmt: skip
    assert seen[20] == pytest.approx(0.5)
    assert seen == sorted(seen)
    assert sparsities(run.trainer) == pytest.approx({"fc1": 0.9, "fc2": 0.9, "fc3": 0.9}, abs=1e-4)
