from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from makeweight import LoopOptions, MakeweightError, Trainer, load_tensors
from makeweight.models.lenets import LeNet300
from makeweight.testing import PluginConformance, run_trainer
from makeweight.training import checkpoint
from makeweight_prune import Prune
from makeweight_prune.magnitude import kept
from makeweight_prune.surgery import scores
from tests.helpers import run_stages


def model_and_data() -> tuple[LeNet300, tuple[torch.Tensor, torch.Tensor]]:
    """A model in double precision, so that it equals a reference at every weight, and data that can be learnt."""
    torch.manual_seed(0)
    labels = torch.randint(0, 10, (320,))
    pixels = torch.randn(10, 1, 8, 8)[labels] + 0.5 * torch.randn(320, 1, 8, 8)
    return LeNet300((1, 8, 8), 10).double(), (pixels.double(), labels)


def trainer(*plugins: object, epochs: int = 4, **settings: Any) -> Trainer:
    model, data = model_and_data()
    return Trainer(model, data, plugins=plugins, batch_size=32, epochs=epochs, **settings)


def stop_early(run: Trainer) -> None:
    """End the run after its first epoch."""

    def stop(batch: Any, output: Any) -> torch.Tensor:
        run.stop("enough")
        result: torch.Tensor = output.sum() * 0
        return result

    run.losses["stop"] = stop


def zeros(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: layer.weight == 0 for name, layer in run.layers().items()}  # type: ignore[misc]


def watched(run: Trainer) -> list[dict[str, torch.Tensor]]:
    """A list that the run fills: at every step's forward pass, the positions of the zeros by layer."""
    seen: list[dict[str, torch.Tensor]] = []

    def look(batch: Any, output: Any) -> torch.Tensor:
        seen.append(zeros(run))
        result: torch.Tensor = output.sum() * 0
        return result

    run.losses["look"] = look
    return seen


@given(st.integers(1, 200), st.floats(0.1, 2), st.integers(0, 2**31))
def test_one_threshold_on_the_scores_acts_as_the_two_of_the_paper(size: int, t: float, seed: int) -> None:
    """Guo et al. 2016, equation 3: the mask is 0 below a = 0.9 t, 1 above b = 1.1 t, and unchanged in between."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, generator=generator, dtype=torch.float64)
    mask = torch.rand(size, generator=generator) < 0.5
    made = scores(weight, mask) > t
    for value, was, now in zip(weight.abs().tolist(), mask.tolist(), made.tolist(), strict=True):
        assert now == (False if value < 0.9 * t else True if value > 1.1 * t else was)


@given(st.integers(2, 300), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_a_dropped_weight_returns_only_for_a_kept_one_that_is_much_smaller(
    size: int, sparsity: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, generator=generator, dtype=torch.float64)
    mask = torch.rand(size, generator=generator) > sparsity
    made = kept(scores(weight, mask), sparsity)
    assert int((~made).sum()) == round(sparsity * size)
    if int((~mask).sum()) == round(sparsity * size) and (back := made & ~mask).any():
        gone = mask & ~made
        assert weight[back].abs().min() > 1.1 / 0.9 * weight[gone].abs().max() * (1 - 1e-9)
    assert torch.equal(kept(scores(weight, made), sparsity), made)  # scoring again changes nothing


def test_training_is_that_of_dense_weights_under_masks_with_the_gradient_passed_through() -> None:
    """Against the paper's algorithm 1 in plain torch: forward with W ⊙ T, dL/d(W ⊙ T) applied to all of W."""
    plugin = Prune(sparsity=0.8, schedule="one-shot", surgery=True, every=5, end=4)
    settings: dict[str, Any] = {"schedule": "constant", "lr": 0.1, "weight_decay": 0.0}
    run = trainer(plugin, **settings)
    network = LeNet300((1, 8, 8), 10).double()
    network.load_state_dict(run.model.state_dict())
    batches: list[Any] = []
    inside: list[dict[str, torch.Tensor]] = []

    def look(batch: Any, output: Any) -> torch.Tensor:
        batches.append(batch)
        inside.append(plugin.masks(run))
        result: torch.Tensor = output.sum() * 0
        return result

    run.losses["look"] = look
    run.fit()
    reference = Reference(network, 0.8)
    for step, (x, y) in enumerate(batches):
        assert all(torch.equal(inside[step][name], reference.masks[name]) for name in reference.masks), step
        reference.step(x, y)
        if (step % 5 == 0 or step % 10 == 9) and step < 39:  # the schedule ends at step 39
            reference.revise()
    assert int((inside[0]["fc1"] != inside[-1]["fc1"]).sum()) > 100
    for name, dense in reference.dense.items():
        masked = dense.detach() * reference.masks[name]
        assert torch.allclose(run.model.get_parameter(f"{name}.weight"), masked, atol=1e-12)


class Reference:
    """Dense weights updated by SGD, and masks from sorting, in which kept weights count 1.1 / 0.9 times as much."""

    def __init__(self, network: nn.Module, sparsity: float) -> None:
        self.network, self.sparsity = network, sparsity
        self.dense = {name: getattr(network, name).weight.detach().clone() for name in ("fc1", "fc2", "fc3")}
        self.masks = {name: torch.ones_like(each, dtype=torch.bool) for name, each in self.dense.items()}
        self.moment: dict[str, torch.Tensor] = {}
        self.revise()

    def revise(self) -> None:
        for name, dense in self.dense.items():
            score = dense.abs() * torch.where(self.masks[name], 1.1 / 0.9, 1.0)
            order = score.flatten().argsort()
            mask = torch.ones(dense.numel(), dtype=torch.bool)
            mask[order[: round(self.sparsity * dense.numel())]] = False
            self.masks[name] = mask.view(dense.shape)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.no_grad():
            for name, dense in self.dense.items():
                getattr(self.network, name).weight.copy_(dense * self.masks[name])
        self.network.zero_grad()
        nn.functional.cross_entropy(self.network(x), y).backward()
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():  # SGD with Nesterov's momentum
                assert parameter.grad is not None
                self.moment[name] = 0.9 * self.moment[name] + parameter.grad if name in self.moment else parameter.grad
                layer, _, kind = name.rpartition(".")
                target = self.dense[layer] if kind == "weight" else parameter
                target -= 0.1 * (parameter.grad + 0.9 * self.moment[name])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_sparsity_is_exact_at_every_step_while_weights_come_and_go(scope: Any) -> None:
    run = trainer(Prune(sparsity=0.9, scope=scope, schedule="one-shot", surgery=True, every=1, end=3), lr=0.5)
    seen = watched(run)
    run.fit()
    total = sum(each.numel() for each in seen[0].values())
    assert {sum(int(each.sum()) for each in step.values()) for step in seen} == {round(0.9 * total)}
    came_back = [int((before["fc1"] & ~after["fc1"]).sum()) for before, after in pairwise(seen)]
    assert sum(came_back[:29]) > 20
    assert came_back[30:] == [0] * 9  # masks are fixed after the end


def test_without_surgery_nothing_comes_back() -> None:
    run = trainer(Prune(sparsity=0.9, every=1, end=3), lr=0.1)
    seen = watched(run)
    run.fit()
    assert all(not (before["fc1"] & ~after["fc1"]).any() for before, after in pairwise(seen))


def test_thresholds_by_quality_let_weights_come_back_too() -> None:
    run = trainer(Prune(quality=1.0, schedule="one-shot", surgery=True, every=1, end=3), lr=0.2)
    seen = watched(run)
    run.fit()
    assert sum(int((before["fc1"] & ~after["fc1"]).sum()) for before, after in pairwise(seen)) > 20
    assert torch.equal(seen[31]["fc1"], seen[-1]["fc1"])


def test_a_stage_without_surgery_follows_and_nothing_is_stored() -> None:
    model, data = model_and_data()
    seen: list[dict[str, torch.Tensor]] = []
    run = run_stages(
        model, data,
        (LoopOptions(epochs=2, lr=0.5, batch_size=32), {"prune": Prune(sparsity=0.8, surgery=True, every=2, end=2)}),
        (LoopOptions(epochs=2, batch_size=32), {"prune": Prune(sparsity=0.8)}),
        watch=lambda trainer: seen.append(zeros(trainer)),
    )  # fmt: skip
    plugin = run.trainer.plugins.by_name["prune"]
    assert any((before["fc1"] & ~after["fc1"]).any() for before, after in pairwise(seen[:20]))
    assert all(torch.equal(seen[20][name], later[name]) for later in seen[20:] for name in later)
    assert plugin.stored == {} == plugin.dropping
    assert int(seen[-1]["fc2"].sum()) == 24000


def test_after_the_end_a_checkpoint_holds_no_dropped_weights_and_before_it_does() -> None:
    plugin = Prune(sparsity=0.8, surgery=True, every=2, end=2)
    run = trainer(plugin)
    held = []

    def look(batch: Any, output: Any) -> torch.Tensor:
        state = plugin.state_dict()
        held.append(len(state["stored"]))
        for name, stored in state["stored"].items():
            assert not (stored[plugin.masks(run)[name]]).any()
        result: torch.Tensor = output.sum() * 0
        return result

    run.losses["look"] = look
    run.fit()
    assert held == [0] * 3 + [3] * 17 + [0] * 20  # the schedule prunes the first weights at the third step


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "kind"])
def test_dropped_weights_of_a_checkpoint_that_do_not_fit_are_refused(change: str, tmp_path: Path) -> None:
    plugin = Prune(sparsity=0.8, surgery=True, every=2, end=4)
    run = trainer(plugin, epochs=4, out=tmp_path)
    stop_early(run)
    run.fit()
    newest = max((tmp_path / "checkpoints").iterdir())
    parts = checkpoint.load(newest)
    stored = parts["plugins"]["prune"]["stored"]
    assert set(stored) == {"fc1", "fc2", "fc3"}
    given: dict[str, Any] = {
        "name": {"fc9": stored["fc1"]}, "shape": {"fc1": stored["fc2"]}, "dtype": {"fc1": stored["fc1"].float()},
        "kind": {"fc1": 3},
    }  # fmt: skip
    parts["plugins"]["prune"]["stored"] = given[change]
    shutil.rmtree(newest)
    checkpoint.save(tmp_path / "checkpoints", 10, parts)
    again = trainer(Prune(sparsity=0.8, surgery=True, every=2, end=4), epochs=4, out=tmp_path, resume=True)
    with pytest.raises(MakeweightError, match=r"stored pruned weights of 'fc\d' do not fit|'fc1' is 3"):
        again.set_up()


class TestSurgery(PluginConformance):
    """Resuming is exact, in two processes too: checkpoints hold the stored weights from the first step on."""

    name = "prune"
    options = {"sparsity": 0.5, "schedule": "one-shot", "every": 1, "surgery": True, "end": 1}


RECIPE = """
model: lenet300
data: digits
batch-size: 64
lr: 0.05
plugins: [prune, cluster, huffman]
prune: {sparsity: 0.9, scope: global, every: 5}
cluster: {values: 0}
stages:
- {epochs: 2, prune: {sparsity: 0}}
- {epochs: 4, prune: {surgery: true, end: 3}}
- {epochs: 2, cluster: {values: 8, begin: 0}}
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_surgery_clustering_and_coding_in_stages_each_reach_their_target(processes: int, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run_trainer(["--recipe", "recipe.yaml", "--out", "run"], tmp_path, processes=processes)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["processes"] == processes
    assert summary["export"]["accuracy"] == summary["accuracy"] > 0.5
    tensors = load_tensors(tmp_path / "run" / "model.safetensors")
    weights = [tensors[f"fc{layer}.weight"] for layer in (1, 2, 3)]
    assert sum(int((weight == 0).sum()) for weight in weights) >= round(0.9 * 50200)
    assert all(len(weight[weight != 0].unique()) <= 8 for weight in weights)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["sparsity"] for line in lines[:2]] == [0, 0]
    assert lines[4]["sparsity"] == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize("state", [{"initial": {"fc1": 5.0}}, {"initial": {"fc1": -1}}, {"reached": {"fc1": "nan"}}])
def test_a_checkpoint_with_an_impossible_sparsity_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="fc1"):
        Prune().load_state_dict({"stored": {}, "initial": {}, "reached": {}} | state)
