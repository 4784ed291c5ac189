from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch

from makeweight import LoopOptions, MakeweightError, Trainer, UsageError
from makeweight.models.lenets import LeNet300
from makeweight_cluster import Cluster
from makeweight_prune import Prune
from tests.helpers import run_stages


def trainer(*plugins: object, epochs: int = 4, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    data = (torch.randn(320, 1, 8, 8), torch.randint(0, 10, (320,)))
    return Trainer(LeNet300((1, 8, 8), 10), data, plugins=plugins, batch_size=32, epochs=epochs, **settings)


def counts(run: Trainer) -> dict[str, int]:
    """Number of distinct nonzero values by parameter name."""
    return {name: len(each[each != 0].unique()) for name, each in run.model.named_parameters()}


def watched(run: Trainer) -> list[dict[str, torch.Tensor]]:
    """A list that the run fills: the parameters at every step's forward pass."""
    seen: list[dict[str, torch.Tensor]] = []

    def look(batch: Any, output: Any) -> torch.Tensor:  # a loss term sees the weights of every step
        seen.append({name: each.detach().clone() for name, each in run.model.named_parameters()})
        result: torch.Tensor = output.sum() * 0
        return result

    run.losses["look"] = look
    return seen


@pytest.mark.parametrize("initialisation", ["linear", "random", "density"])
@pytest.mark.parametrize("reassign_every", [0, 3])
def test_layers_have_at_most_the_target_number_of_values(initialisation: Any, reassign_every: int) -> None:
    run = trainer(Cluster(values=6, biases=3, initialisation=initialisation, reassign_every=reassign_every))
    metrics = run.fit()
    found = counts(run)
    assert all(found[f"{name}.weight"] <= 6 for name in run.layers())
    assert all(found[f"{name}.bias"] <= 3 for name in run.layers())
    assert metrics["distinct_values"] == max(found.values()) > 3


def test_a_table_applies_its_last_match_and_leaves_the_rest_alone() -> None:
    run = trainer(Cluster(values={"fc*": 5, "fc2": 9, "fc3": 0}, biases={"fc2": 2}))
    run.fit()
    found = counts(run)
    assert (found["fc1.weight"], found["fc2.weight"], found["fc2.bias"]) == (5, 9, 2)
    assert found["fc3.weight"] == 1000
    assert found["fc1.bias"] == 300


def test_values_are_shared_from_begin_on_and_trained() -> None:
    run = trainer(Cluster(values=5))  # begin: half of the stage
    seen = watched(run)
    run.fit()
    assert [len(each["fc1.weight"].unique()) <= 5 for each in seen] == [False] * 20 + [True] * 20
    first, last = seen[20]["fc1.weight"], seen[-1]["fc1.weight"]
    assert not torch.equal(first, last)
    for value in first.unique():  # weights that share a value keep sharing it
        assert len(last[first == value].unique()) == 1


def test_clusters_change_where_they_are_reassigned() -> None:
    run = trainer(Cluster(values=5, begin=0, reassign_every=10))
    seen = watched(run)
    run.fit()
    first, last = seen[0]["fc1.weight"], seen[-1]["fc1.weight"]
    assert any(len(last[first == value].unique()) > 1 for value in first.unique())
    assert len(last.unique()) == 5


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_pruned_stays_zero_in_either_order(order: int) -> None:
    plugins = [Prune(sparsity=0.9, every=1, end=3), Cluster(values=4, begin=1)][::order]
    run = trainer(*plugins, weight_decay=0.1, lr=0.05)
    seen = watched(run)
    run.fit()
    for before, after in pairwise(seen[10:]):
        assert not (after["fc1.weight"][before["fc1.weight"] == 0]).any()
    weights = [each["fc1.weight"] for each in seen[11:]]
    assert all(len(weight[weight != 0].unique()) <= 4 for weight in weights)
    assert float((weights[-1] == 0).float().mean()) == pytest.approx(0.9, abs=0.01)


def test_weights_that_are_zero_when_clusters_are_made_stay_zero_with_no_mask() -> None:
    run = trainer(Cluster(values=4, begin=0), weight_decay=0.1)
    zero = torch.rand(300, 64) < 0.5
    run.model.fc1.weight.data[zero] = 0  # type: ignore[union-attr,operator]
    run.fit()
    assert torch.equal(run.model.get_parameter("fc1.weight").eq(0), zero)


def test_values_are_shared_by_the_weight_behind_a_parametrization() -> None:
    from torch import nn
    from torch.nn.utils import parametrize

    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    run = trainer(Cluster(values=4))
    parametrize.register_parametrization(run.model.fc1, "weight", Doubled())  # type: ignore[arg-type]
    run.fit()
    assert counts(run)["fc1.parametrizations.weight.original"] == 4


def test_a_stage_may_skip_clustering_refine_it_or_keep_its_clusters() -> None:
    first = trainer()
    seen: list[dict[str, torch.Tensor]] = []
    options: list[dict[str, Any]] = [{"values": 0}, {"values": 8, "begin": 0}, {"values": {"fc1": 8, "fc2": 3}}]
    run_stages(
        first.model, first.batches.data.columns,
        *((LoopOptions(epochs=2, batch_size=32), {"cluster": Cluster(**each)}) for each in options),
        watch=lambda run: seen.append({name: each.detach().clone() for name, each in run.model.named_parameters()}),
    )  # fmt: skip
    number = [[len(each[f"fc{layer}.weight"].unique()) for layer in (1, 2, 3)] for each in seen]
    assert all(min(each) > 500 for each in number[:20])
    assert all(each == [8, 8, 8] for each in number[20:40])
    assert all(each[:2] == [8, 8] for each in number[40:50])  # fc3 is free again
    assert all(each[:2] == [8, 3] for each in number[50:])
    assert number[-1][2] > 500
    assert torch.equal(groups(seen[21]["fc1.weight"]), groups(seen[-1]["fc1.weight"]))


def groups(weight: torch.Tensor) -> torch.Tensor:
    """[n, n] bool: which of the first n weights have equal values."""
    flat = weight.flatten()[:500]
    return flat[:, None] == flat


def test_changed_values_are_an_error_at_export(tmp_path: Any) -> None:
    run = trainer(Cluster(values=4))
    run.fit()
    run.model.fc2.weight.data[0, :3] = torch.tensor([5.0, 6.0, 7.0])  # type: ignore[union-attr,operator]
    with pytest.raises(MakeweightError, match=r"fc2\.weight has [567] distinct values, expected at most 4"):
        run.export(tmp_path / "model.safetensors")


def test_training_that_stopped_before_begin_is_an_error_at_export(tmp_path: Any) -> None:
    from makeweight import hookimpl

    @dataclass(eq=False)
    class Stop:
        @hookimpl
        def on_epoch_end(self, trainer: Trainer) -> None:
            trainer.stop("enough")

    run = trainer(Cluster(values=4, begin=3), Stop())
    run.fit()
    with pytest.raises(MakeweightError, match="distinct values, expected at most 4"):
        run.export(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": -1}, "values -1: expected 1 or more, or 0 for no limit"),
        ({"values": {"fc1": -2}}, "values fc1 -2: expected 1 or more"),
        ({"biases": -1}, "biases -1: expected 1 or more"),
        ({"begin": -1}, "begin -1: expected an epoch"),
        ({"reassign_every": -1}, "reassign_every -1: expected 1 step or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Cluster(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "nope*"}, "no layer matches 'nope\\*': choose from fc1, fc2, fc3"),
        ({"values": {"fc": 5}}, "no layer matches 'fc': did you mean"),
        ({"begin": 4}, "cluster.begin 4: expected less than the 4 epochs of the stage; cluster.values 0 skips a stage"),
    ],
)
def test_options_that_do_not_fit_the_run_are_refused_before_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trainer(Cluster(**options)).set_up()


def test_a_begin_out_of_reach_does_not_matter_to_a_skipped_stage() -> None:
    assert "no layer" in (trainer(Cluster(values=0, begin=9)).check()["cluster"] or "")
