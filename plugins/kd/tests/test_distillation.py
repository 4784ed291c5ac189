from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from makeweight import MakeweightError, Trainer, UsageError, load
from makeweight.models import LeNet300, build
from makeweight_kd import Distillation
from makeweight_kd.sections import find_sections


def trainer(*plugins: object, model: nn.Module | None = None, classes: int = 10, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = model or LeNet300((1, 8, 8), classes)
    data = (torch.randn(128, 1, 8, 8), torch.randint(0, classes, (128,)))
    return Trainer(model, data, plugins=plugins, **{"batch_size": 32, "epochs": 2, **settings})


def called(model: nn.Module) -> list[str]:
    """These networks are made in the order in which they are called."""
    return [name for name, _ in model.named_modules() if name]


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("resnet18", ["layer1", "layer2", "layer3"]),
        ("resnet50", ["layer1", "layer2", "layer3"]),
        ("vgg11_bn", ["features.7", "features.14", "features.21"]),
        ("lenet300", ["fc1", "fc2"]),
        ("lenet5", ["conv1", "conv2", "fc1"]),
    ],
)
def test_sections_are_found(name: str, sections: list[str]) -> None:
    model = build(name, (3, 32, 32), 10)
    assert find_sections(model, called(model)) == sections


def test_sections_of_a_plain_sequential_network_are_spread_over_its_layers() -> None:
    model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(4, 4), nn.ReLU())], nn.Linear(4, 2))
    assert find_sections(model, called(model)) == ["2", "6", "10"]


def test_named_sections_are_taken_and_unknown_ones_refused() -> None:
    model = build("resnet18", (3, 32, 32), 10)
    assert find_sections(model, called(model), ["layer2", "layer3.0"]) == ["layer2", "layer3.0"]
    with pytest.raises(UsageError, match="no module matches 'layer9': did you mean"):
        find_sections(model, called(model), ["layer9"])


def test_a_network_of_one_layer_has_no_sections() -> None:
    with pytest.raises(UsageError, match="name a teacher"):
        find_sections(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), ["0", "1"])


def test_the_trunk_is_the_same_bit_for_bit_where_the_heads_weigh_nothing() -> None:
    plain, distilled = trainer(), trainer(Distillation(weight=0.0))
    plain.fit()
    distilled.fit()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, distilled.model.state_dict()[name]), name


def test_the_heads_learn_and_never_reach_the_export(tmp_path: Path) -> None:
    run = trainer(Distillation(), lr=0.05)
    run.set_up()
    before = copy.deepcopy(run.auxiliary.state_dict())
    metrics = run.fit()
    assert any(not torch.equal(before[name], tensor) for name, tensor in run.auxiliary.state_dict().items())
    assert {"train_task", "train_kd_labels", "train_kd", "train_kd_features"} < set(metrics)
    artifact = run.export(tmp_path / "model.safetensors")
    assert artifact is not None
    assert list(artifact.tensors) == [f"fc{layer}.{kind}" for layer in (1, 2, 3) for kind in ("weight", "bias")]


def test_the_terms_are_those_of_the_paper() -> None:
    """(1 - α)·CE(q_i, y) + α·KL(q_i, q_C) + λ·‖F_i - F_C‖ for each shallow classifier, CE alone for the deepest."""
    from torch.nn.functional import cross_entropy

    from makeweight_kd.losses import divergence

    plugin = Distillation(alpha=0.2, temperature=2.0, feature_weight=0.5)
    run = trainer(plugin)
    run.set_up()
    batch = run.sample_batch()
    plugin._capturing = True
    output = run.model.train()(batch[0])
    shallow, deepest = dict(plugin._shallow), plugin._deepest
    assert list(shallow) == ["fc1", "fc2"]
    assert deepest is not None
    terms = {name: term(batch, output).item() for name, term in run.losses.items()}
    assert terms["task"] == pytest.approx(cross_entropy(output, batch[1]).item())
    labels = sum(cross_entropy(logits, batch[1]).item() for logits, _ in shallow.values())
    assert terms["kd_labels"] == pytest.approx(0.8 * labels, rel=1e-6)
    soft = sum(divergence(logits, output, 2.0).item() for logits, _ in shallow.values())
    assert terms["kd"] == pytest.approx(0.2 * soft, rel=1e-6)
    distance = sum((features - deepest).norm(dim=1).mean().item() for _, features in shallow.values())
    assert terms["kd_features"] == pytest.approx(0.5 * distance, rel=1e-6)


def test_nothing_that_was_captured_outlives_the_step() -> None:
    plugin = Distillation()
    run = trainer(plugin)
    run.fit()
    assert plugin._shallow == {}
    assert plugin._deepest is None
    copy.deepcopy(run.model)


def test_a_teacher_from_a_file_is_followed(tmp_path: Path) -> None:
    teacher = trainer(lr=0.1, epochs=10)
    teacher.fit()
    teacher.export(tmp_path / "teacher.safetensors")
    plugin = Distillation(teacher=str(tmp_path / "teacher.safetensors"), alpha=1.0)
    student = trainer(plugin, model=build("lenet300", (1, 8, 8), 10, seed=5), lr=0.1, epochs=40)
    first = student.fit()
    x = student.sample_batch()[0]
    restored = load(tmp_path / "teacher.safetensors", LeNet300((1, 8, 8), 10))
    with torch.no_grad():
        assert (student.model(x).argmax(1) == restored(x).argmax(1)).float().mean() > 0.95
    assert first["train_task"] == 0.0  # alpha 1: the teacher's word alone
    assert len(student.auxiliary) == 0


def test_a_teacher_of_another_architecture(tmp_path: Path) -> None:
    teacher = trainer(model=build("resnet18", (1, 8, 8), 10), epochs=1)
    teacher.fit()
    teacher.export(tmp_path / "teacher.safetensors")
    plugin = Distillation(teacher=str(tmp_path / "teacher.safetensors"), teacher_model="resnet18")
    assert trainer(plugin).fit()["train_kd"] > 0


def test_a_teacher_with_other_classes_is_refused_with_both_numbers(tmp_path: Path) -> None:
    teacher = trainer(model=build("resnet18", (1, 8, 8), 7), classes=7, epochs=1)
    teacher.export(tmp_path / "teacher.safetensors")
    plugin = Distillation(teacher=str(tmp_path / "teacher.safetensors"), teacher_model="resnet18")
    with pytest.raises(UsageError, match="it knows 7 classes, the student 10"):
        trainer(plugin).set_up()


def test_a_damaged_teacher_is_refused(tmp_path: Path) -> None:
    trainer().export(tmp_path / "teacher.safetensors")
    data = bytearray((tmp_path / "teacher.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "teacher.safetensors").write_bytes(data)
    with pytest.raises(MakeweightError, match=r"teacher\.safetensors is damaged"):
        trainer(Distillation(teacher=str(tmp_path / "teacher.safetensors"))).set_up()


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"alpha": 1.5}, {"feature_weight": -1}, {"weight": 2}, {"teacher_model": "resnet18"}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Distillation(**options)


class Backwards(nn.Module):
    """Makes its layers in another order than it calls them, with activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(32, 10)
        self.second = nn.Conv2d(8, 32, 3, padding=1)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.relu(self.second(self.relu(self.first(x)))).mean((2, 3)))


def test_sections_follow_the_order_of_the_calls_and_bear_activations_in_place() -> None:
    run = trainer(Distillation(), model=Backwards())
    said = run.set_up()["distillation" if "distillation" in run.plugins.by_name else "kd"]
    assert "after first, second," in str(said)
    assert run.fit()["train_kd"] > 0


def test_a_stage_cannot_change_the_teacher() -> None:
    from makeweight.options import Stage, StageOptions

    stages = [Stage(StageOptions(epochs=1), {"kd": Distillation(teacher="nowhere.safetensors")})]
    with pytest.raises(UsageError, match=r"kd\.teacher nowhere\.safetensors: expected the same in every stage"):
        trainer(Distillation(), stages=stages).set_up()
