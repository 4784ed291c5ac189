"""Self-distillation: its losses are those of the paper, and it leaves the rest of the run unchanged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from makeweight import Trainer, UsageError
from makeweight.models.by_name import build
from makeweight.plugin import Task
from makeweight_kd import Distillation
from makeweight_kd.heads import head_for
from makeweight_kd.losses import divergence

from .helpers_kd import layers, self_distillation, small_resnet, trainer


@pytest.mark.parametrize("name", ["lenet300", "resnet20"])
def test_the_network_trains_to_the_same_bits_with_heads_of_weight_0(name: str) -> None:
    """Weights, batch norm statistics and metrics, of networks with and without batch norm."""
    plain, distilled = (
        trainer(*plugins, model=build(name, (1, 8, 8), 10), lr=0.05, weight_decay=1e-3)
        for plugins in ([], [Distillation(weight=1e-60)])  # 0 in float32
    )
    assert plain.fit()["train_task"] == distilled.fit()["train_task"]
    assert len(list(distilled.auxiliary["kd"].children())) == 2
    state = distilled.model.state_dict()
    assert list(plain.model.state_dict()) == list(state)
    for key, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_a_weight_of_zero_attaches_nothing() -> None:
    run = trainer(Distillation(weight=0.0))
    assert run.check() == {"kd": "off: weight 0"}
    run.set_up()
    assert list(run.losses) == ["task"]
    assert not run.auxiliary
    assert not any(module._forward_hooks for module in run.model.modules())


def test_the_heads_learn_and_never_reach_the_export(tmp_path: Path) -> None:
    run = trainer(Distillation(), lr=0.05)
    run.set_up()
    before = copy.deepcopy(run.auxiliary.state_dict())
    metrics = run.fit()
    after = run.auxiliary.state_dict()
    assert all(not torch.equal(before[name], tensor) for name, tensor in after.items())
    assert {"train_task", "train_kd_labels", "train_kd", "train_kd_features"} < set(metrics)
    artifact = run.export(tmp_path / "model.safetensors")
    assert artifact is not None
    assert list(artifact.tensors) == [f"fc{layer}.{kind}" for layer in (1, 2, 3) for kind in ("weight", "bias")]
    assert artifact.metadata == {}


def test_an_empty_teacher_means_self_distillation() -> None:
    assert trainer(Distillation(teacher=""), lr=0.05).fit()["train_kd_labels"] > 0


@pytest.mark.parametrize("model", [None, small_resnet()], ids=["vectors", "maps"])
def test_the_losses_are_those_of_the_paper(model: nn.Module | None) -> None:
    """(1 - α)·CE(q_i, y) + α·KL(q_i, q_C) + λ·‖F_i - F_C‖ for each shallow classifier, CE alone for the deepest."""
    plugin = Distillation(alpha=0.2, temperature=2.0, feature_weight=0.5)
    run = trainer(plugin, model=model)
    run.set_up()
    batch = run.sample_batch()
    with self_distillation(plugin).capture.step():
        output = run.model.train()(batch[0])
        shallow, deepest = self_distillation(plugin).shallow, self_distillation(plugin).capture.found["deepest",]
        terms = {name: term(batch, output).item() for name, term in run.losses.items()}
    assert len(shallow) == 2
    assert terms["task"] == cross_entropy(output, batch[1]).item()  # α = λ = 0 for the deepest
    labels = sum(cross_entropy(logits, batch[1]).item() for logits, _ in shallow)
    assert terms["kd_labels"] == pytest.approx(0.8 * labels, rel=1e-6)
    soft = sum(divergence(logits, output, 2.0).item() for logits, _ in shallow)
    assert terms["kd"] == pytest.approx(0.2 * soft, rel=1e-6)
    distance = sum((features - deepest).norm(dim=1).mean().item() for _, features in shallow)
    assert terms["kd_features"] == pytest.approx(0.5 * distance, rel=1e-6)


def test_the_deepest_classifier_learns_from_the_labels_only() -> None:
    """The added losses give no gradient to the last layer or to the last section."""
    plugin = Distillation()
    run = trainer(plugin, model=small_resnet())
    run.set_up()
    batch = run.sample_batch()
    with self_distillation(plugin).capture.step():
        output = run.model.train()(batch[0])
        added: Tensor = sum(run.losses[name](batch, output) for name in ("kd_labels", "kd", "kd_features"))  # type: ignore[assignment]
    added.backward()
    gradients = {name: parameter.grad for name, parameter in run.model.named_parameters()}
    assert all(gradients[name] is None for name in gradients if name.startswith(("layer3", "fc")))
    assert all(gradients[name] is not None for name in gradients if name.startswith(("conv1", "layer1", "layer2")))


@pytest.mark.parametrize(
    ("section", "deepest", "widths", "stride"),
    [
        ((16, 32, 32), (64, 8, 8), [16, 32, 64], 2),
        ((32, 16, 16), (64, 8, 8), [32, 64], 2),
        ((64, 8, 8), (64, 8, 8), [64, 64], 1),
        ((128, 7, 7), (96, 1, 1), [128, 128, 128, 128], 2),
        ((300,), None, [300, 100], 2),
        ((50,), None, [50, 50], 2),
    ],
)
def test_a_head_brings_a_map_to_the_size_of_the_deepest(
    section: tuple[int, ...], deepest: tuple[int, ...] | None, widths: list[int], stride: int
) -> None:
    head = head_for(torch.zeros(1, *section), None if deepest is None else torch.zeros(1, *deepest), 5, 100)
    assert (head.widths, head.stride) == (widths, stride)
    assert head(torch.zeros(2, *section)).shape == (2, 5)
    if deepest is not None:
        assert head.bottleneck(torch.zeros(2, *section)).shape[2:] == deepest[1:]


def test_a_head_takes_the_mean_of_tokens_and_maps_whose_channels_come_last() -> None:
    assert head_for(torch.zeros(1, 50, 24), None, 5, 24)(torch.zeros(2, 50, 24)).shape == (2, 5)
    swin = head_for(torch.zeros(1, 8, 8, 24), torch.zeros(1, 2, 2, 96), 5, 96)
    assert swin.widths == [24, 48, 96]
    assert swin(torch.zeros(2, 8, 8, 24)).shape == (2, 5)


def test_captured_outputs_are_cleared_after_each_step() -> None:
    plugin = Distillation()
    run = trainer(plugin)
    run.fit()
    assert self_distillation(plugin).capture.found == {}
    copy.deepcopy(run.model)


class Inplace(nn.Module):
    """In-place activations right after the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(32, 10)
        self.second = nn.Conv2d(8, 32, 3, padding=1)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.relu(self.second(self.relu(self.first(x)))).mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    "options",
    [{"sections": ["norm", "second"]}, {"teacher": "initial", "hints": 1.0, "sections": ["norm"]}, {"weight": 0}],
)
def test_a_frozen_batch_norm_stays_frozen_and_may_end_a_section(options: dict[str, Any]) -> None:
    model = layers()
    norm = model.get_submodule("norm").eval()
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    seen: list[tuple[bool, bool]] = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append((model.training, module.training)))
    run = trainer(Distillation(**options), model=model, lr=0.1)
    metrics = run.fit()
    assert {mode for mode in seen if mode[0]} == {(True, False)}
    assert not norm.training
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(norm.state_dict()[name], before[name]), name
    assert not torch.equal(norm.state_dict()["weight"], before["weight"])
    assert {name for name in metrics if name.startswith("train_kd")} == {
        f"train_{name}" for name in run.losses if name != "task"
    }


def test_tracing_restores_the_training_mode_of_each_module() -> None:
    model = layers()
    model.get_submodule("norm").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    run = trainer(Distillation(exits="all"), model=model)
    run.check()
    run.set_up()
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_in_place_activations_after_a_section_are_allowed() -> None:
    run = trainer(Distillation(), model=Inplace())
    assert "after first, second" in str(run.check()["kd"])
    assert run.fit()["train_kd"] > 0


def test_a_model_without_logits_is_refused() -> None:
    """Logits [B, classes, H, W] of a segmentation network, which the core trains."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 10, 1))
    data = torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32, 8, 8))
    with pytest.raises(UsageError, match=r"output has shape \[4, 10, 8, 8\]: expected logits"):
        Trainer(model, data, plugins=[Distillation()], batch_size=32, epochs=1).set_up()


def test_options_are_checked_while_the_structure_is_undecided() -> None:
    plugin = Distillation(attention=1000.0)
    with pytest.raises(UsageError, match=r"kd\.attention 1000.0: expected a teacher"):
        plugin.on_check(model=None, batch=None, task=Task())
    with pytest.raises(UsageError, match=r"kd\.teacher nowhere\.safetensors: expected an exported model"):
        Distillation(teacher="nowhere.safetensors").on_check(model=None, batch=None, task=Task())
    line = Distillation().on_check(model=None, batch=None, task=Task())
    found = "shallow classifiers after sections that are found when the stage begins"
    assert line == f"self-distillation, alpha 0.3, {found}"
    line = Distillation(teacher="initial").on_check(model=None, batch=None, task=Task())
    assert line == "teacher initial, temperature 3, alpha 0.9"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature 0: expected a number above 0"),
        ({"alpha": 1.5}, "alpha 1.5: expected 0 <= alpha <= 1"),
        ({"feature_weight": -1}, "feature_weight -1: expected 0 or more"),
        ({"attention": -1}, "attention -1: expected 0 or more"),
        ({"weight": 2}, "weight 2: expected 0 <= weight <= 1"),
        ({"teacher_model": "resnet18"}, "teacher_model resnet18: expected a teacher: set kd.teacher"),
        ({"exits": "0"}, "exits 0: expected all, or exit numbers from 1"),
        ({"exits": "deep"}, "exits deep: expected all, or exit numbers from 1"),
        ({"confidence": 1.5}, "confidence 1.5: expected 0 < confidence <= 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Distillation(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sections": ["fc9"]}, r"kd\.sections: no module matches 'fc9': did you mean"),
        ({"sections": ["fc1", "fc3"]}, r"kd\.sections fc3: it contains the network's last layer"),
        ({"teacher_sections": ["fc1"]}, r"teacher_sections \['fc1'\]: expected a teacher: set kd.teacher"),
        ({"exits": "3"}, "exits 3: expected all, or exit numbers from 1 to 2, the number of shallow classifiers"),
        ({"attention": 1000.0}, r"kd\.attention 1000.0: expected a teacher"),
        ({"hints": 1.0}, r"kd\.hints 1.0: expected a teacher"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trainer(Distillation(**options)).set_up()
