"""Attention and hints in training: which modules are compared, and what is added to the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from makeweight import Trainer, UsageError, load
from makeweight.models.by_name import build
from makeweight_kd import Distillation
from makeweight_kd.attention import attention_distance

from .helpers_kd import Change, Look, assert_same_bits, layers, small_resnet, staged, teacher_distillation, trainer

MAPS = ["layer1", "layer2", "layer3"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    trainer(model=small_resnet(seed=7)).export(path)
    return path


def stepped(plugin: Distillation, model: Any = None) -> tuple[Trainer, Any, Tensor, dict[str, Tensor]]:
    """A trainer that is set up, a batch, the model's output for it, and the loss terms."""
    run = trainer(plugin, model=model or small_resnet())
    run.set_up()
    batch = run.sample_batch()
    with teacher_distillation(plugin).capture.step():
        output = run.model.train()(batch[0])
        return run, batch, output, {name: term(batch, output) for name, term in run.losses.items()}


def maps(model: Any, x: Tensor) -> list[Tensor]:
    found = []
    x = torch.relu(model.bn1(model.conv1(x)))
    for name in MAPS:
        x = model.get_submodule(name)(x)
        found.append(x)
    return found


def test_the_attention_loss_sums_three_sections_with_the_factor_beta_over_2(teacher: Path) -> None:
    plugin = Distillation(teacher=str(teacher), alpha=0.0, attention=1000.0)
    run, batch, _, terms = stepped(plugin)
    theirs = load(teacher, small_resnet()).eval()
    with torch.no_grad():
        pairs = zip(maps(run.model, batch[0]), maps(theirs, batch[0]), strict=True)
        expected = 500 * sum(float(attention_distance(one, other)) for one, other in pairs)
    assert float(terms["kd_attention"].detach()) == pytest.approx(expected, rel=1e-4)
    assert float(terms["kd"]) == 0
    terms["kd_attention"].backward()
    gradients = {name: parameter.grad for name, parameter in run.model.named_parameters()}
    assert gradients["fc.weight"] is None
    assert all(gradients[f"{name}.0.conv1.weight"] is not None for name in MAPS)


def test_the_adapter_of_hints_is_trained_and_not_exported(teacher: Path, tmp_path: Path) -> None:
    plugin = Distillation(teacher=str(teacher), hints=2.0, sections=["layer2"], teacher_sections=["layer3"])
    run, batch, _, terms = stepped(plugin)
    theirs = load(teacher, small_resnet()).eval()
    adapters: Any = run.auxiliary["kd_hints_1"]
    with torch.no_grad():
        guided = torch.nn.functional.adaptive_avg_pool2d(adapters[0](maps(run.model, batch[0])[1]), 2)
        expected = 2 * float((guided - maps(theirs, batch[0])[2]).square().mean()) / 2
    assert float(terms["kd_hints"].detach()) == pytest.approx(expected, rel=1e-4)
    terms["kd_hints"].backward()
    assert adapters[0].layer.weight.grad.abs().sum() > 0
    assert adapters[0].layer.weight.shape == (64, 32, 1, 1)
    artifact = run.export(tmp_path / "model.safetensors")
    assert artifact is not None
    assert list(artifact.tensors) == list(small_resnet().state_dict())


def test_networks_without_feature_maps_compare_hints_after_their_layers() -> None:
    model = build("lenet300", (1, 8, 8), 10)
    plugin = Distillation(teacher="initial", hints=1.0)
    run = trainer(plugin, model=model, epochs=1)
    assert run.fit()["train_kd_hints"] > 0
    assert teacher_distillation(plugin).compared == ["fc1", "fc2"]


def test_a_stage_has_only_its_own_adapters_and_continues_with_those_of_an_earlier_stage() -> None:
    """Every auxiliary parameter gets a gradient in every step: training in several processes needs that."""
    began: list[dict[str, Tensor]] = []
    ended: list[dict[str, Tensor]] = []

    def begin(trainer: Trainer) -> None:
        began.append({name: tensor.clone() for name, tensor in trainer.auxiliary.state_dict().items()})

    def end(trainer: Trainer, metrics: dict[str, float]) -> None:
        ended.append({name: tensor.clone() for name, tensor in trainer.auxiliary.state_dict().items()})
        gradients = [each.grad for each in trainer.auxiliary.parameters()]
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
        assert ("train_kd_hints" in metrics) == bool(gradients)

    tables: list[dict[str, Any]] = [{"hints": 1.0, "attention": 10.0}, {}, {"hints": 1.0}]
    staged(small_resnet(), *([Distillation(teacher="initial", **table), Look(begin, end)] for table in tables)).fit()
    assert [len(each) for each in began] == [6, 0, 6]
    assert all(not torch.equal(began[0][name], tensor) for name, tensor in ended[0].items())
    assert_same_bits(ended[0], began[2])


def test_modules_of_the_initial_teacher_are_matched_by_name_after_a_change_of_structure() -> None:
    plugin = Distillation(teacher="initial", hints=1.0, sections=["first", "second"])
    run = staged(layers(), [Change("narrow"), plugin])
    assert run.fit()["train_kd_hints"] > 0
    (teacher,) = teacher_distillation(plugin).models.values()
    assert [teacher.get_parameter(f"{name}.weight").shape for name in ("first", "second")] == [(12, 64), (12, 12)]
    assert teacher_distillation(plugin).pairs == [("first", "initial", "first"), ("second", "initial", "second")]
    shapes = [tensor.shape for name, tensor in run.trainer.auxiliary.state_dict().items() if name.endswith("weight")]
    assert shapes == [(12, 9), (12, 12)]


def test_modules_that_the_initial_teacher_lacks_are_matched_with_teacher_sections_or_found_ones() -> None:
    named = Distillation(teacher="initial", hints=1.0, sections=["first.0"], teacher_sections=["first"])
    staged(layers(), [Change("two"), named]).fit()
    assert teacher_distillation(named).pairs == [("first.0", "initial", "first")]
    found = Distillation(teacher="initial", hints=1.0, sections=["first.0", "second"])
    staged(layers(), [Change("two"), found]).fit()
    assert teacher_distillation(found).pairs == [("first.0", "initial", "first"), ("second", "initial", "second")]
    with pytest.raises(UsageError, match=r"initial: its 2 sections \(first, second\) do not match the student's 3"):
        staged(layers(), [Change("two"), Distillation(teacher="initial", hints=1.0)]).fit()


def test_different_numbers_of_sections_are_refused_and_both_are_listed(teacher: Path) -> None:
    plugin = Distillation(
        teacher=str(teacher), attention=1.0, sections=["layer1"], teacher_sections=["layer1", "layer2"]
    )
    with pytest.raises(UsageError, match=r"its 2 sections \(layer1, layer2\) do not match the student's 1 \(layer1\)"):
        trainer(plugin, model=small_resnet()).set_up()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_sections": ["layer7"]}, r"kd\.teacher_sections: no module matches 'layer7': did you mean"),
        ({"sections": ["fc"]}, r"kd\.sections fc: expected a module that outputs a feature map, attention needs one"),
    ],
)
def test_modules_that_cannot_be_compared_are_refused(teacher: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trainer(Distillation(teacher=str(teacher), attention=1.0, **options), model=small_resnet()).set_up()


def test_captured_outputs_are_cleared_after_each_step(teacher: Path) -> None:
    plugin = Distillation(teacher=str(teacher), attention=1.0, hints=1.0)
    run = trainer(plugin, model=small_resnet(), epochs=1)
    run.fit()
    assert teacher_distillation(plugin).capture.found == {}
