"""Teachers: files, ensembles, other architectures, functions, torchvision, and the network at the start of a stage."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

from makeweight import MakeweightError, Run, Trainer, UsageError, load
from makeweight.models.by_name import build
from makeweight.models.lenets import LeNet300
from makeweight.training import checkpoint
from makeweight_kd import Distillation
from makeweight_kd.losses import divergence
from makeweight_prune import Prune

from .helpers_kd import (
    Change,
    Look,
    assert_same_bits,
    install_change,
    layers,
    self_distillation,
    small_resnet,
    staged,
    teacher_distillation,
    trainer,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports: two teachers of the student's architecture, and a ResNet-20."""
    folder = tmp_path_factory.mktemp("teachers")
    models = {"one": build("lenet300", (1, 8, 8), 10, 3), "two": build("lenet300", (1, 8, 8), 10, 4),
              "resnet": small_resnet()}  # fmt: skip
    for name, model in models.items():
        run = trainer(model=model)
        run.export(folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in models}


def terms(plugin: Distillation, model: nn.Module | None = None) -> tuple[Trainer, dict[str, float]]:
    """A trainer that is set up, and its losses on its first batch."""
    run = trainer(plugin, model=model)
    run.set_up()
    batch = run.sample_batch()
    assert plugin.method is not None
    with plugin.method.capture.step():
        output = run.model.train()(batch[0])
        return run, {name: float(term(batch, output).detach()) for name, term in run.losses.items()}


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_the_losses_are_those_of_hinton(files: dict[str, Path], names: list[str]) -> None:
    """(1 - α)·CE + α T² KL(teacher ‖ student), where several teachers contribute their mean probability."""
    given: Any = [str(files[name]) for name in names] if len(names) > 1 else str(files[names[0]])
    run, found = terms(Distillation(teacher=given, alpha=0.7, temperature=4.0))
    x, y = run.sample_batch()
    with torch.no_grad():
        teachers = [load(files[name], LeNet300((1, 8, 8), 10))(x) for name in names]
        student = run.model(x)
    assert list(found) == ["task", "kd"]
    assert found["task"] == pytest.approx(0.3 * cross_entropy(student, y).item(), rel=1e-6)
    assert found["kd"] == pytest.approx(0.7 * 16 * divergence(student, teachers, 4.0).item(), rel=1e-6)


def test_teachers_are_separated_by_commas_on_the_command_line(files: dict[str, Path]) -> None:
    _, listed = terms(Distillation(teacher=[str(files["one"]), str(files["two"])]))
    _, joined = terms(Distillation(teacher=f"{files['one']},{files['two']}"))
    assert listed == joined


def test_a_teacher_of_another_architecture(files: dict[str, Path]) -> None:
    run, found = terms(Distillation(teacher=str(files["resnet"]), teacher_model="resnet20", alpha=1.0))
    x = run.sample_batch()[0]
    teacher = load(files["resnet"], small_resnet(seed=2)).eval()
    with torch.no_grad():
        assert found["kd"] == pytest.approx(9 * divergence(run.model(x), teacher(x), 3.0).item(), rel=1e-5)


def distance(student: nn.Module, teacher: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float(divergence(student(x), teacher(x), 1.0))


def test_a_student_follows_its_teacher(files: dict[str, Path]) -> None:
    run = trainer(Distillation(teacher=str(files["one"]), alpha=1.0), model=build("lenet300", (1, 8, 8), 10, seed=5),
                  lr=0.1, epochs=40)  # fmt: skip
    x = run.sample_batch()[0]
    teacher = load(files["one"], LeNet300((1, 8, 8), 10))
    before, metrics, after = distance(run.model, teacher, x), run.fit(), distance(run.model, teacher, x)
    assert after < 0.1 * before
    assert metrics["train_task"] == 0.0  # alpha 1: the teacher's loss alone
    assert len(run.auxiliary) == 0


def test_a_teacher_is_frozen_in_eval_mode_and_in_no_state_dict(files: dict[str, Path]) -> None:
    plugin = Distillation(teacher=str(files["resnet"]))
    run = trainer(plugin, model=small_resnet())
    run.set_up()
    (teacher,) = teacher_distillation(plugin).models.values()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    run.fit()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    mine = {id(parameter) for parameter in teacher.parameters()}
    trained = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert trained
    assert not mine & trained
    assert plugin.state_dict() == {"heads": []}
    assert teacher_distillation(plugin).capture.found == {}


def test_a_teacher_computes_in_the_runs_precision(files: dict[str, Path]) -> None:
    plugin = Distillation(teacher=str(files["one"]))
    run = trainer(plugin, precision="bf16", epochs=1)
    run.set_up()
    seen: set[torch.dtype] = set()
    (teacher,) = teacher_distillation(plugin).models.values()
    teacher.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    run.fit()
    assert seen == {torch.bfloat16}


def test_any_safetensors_file_can_teach(files: dict[str, Path], tmp_path: Path) -> None:
    save_file(load(files["one"], LeNet300((1, 8, 8), 10)).state_dict(), tmp_path / "plain.safetensors")
    _, exported = terms(Distillation(teacher=str(files["one"])))
    _, plain = terms(Distillation(teacher=str(tmp_path / "plain.safetensors")))
    assert plain == exported


def test_teacher_and_student_may_differ_in_recorded_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_change(tmp_path, monkeypatch)
    for name, plugins in {"narrow": [Change("narrow")], "plain": []}.items():
        run = trainer(*plugins, model=layers(), epochs=1)
        run.fit()
        run.export(tmp_path / f"{name}.safetensors")
    for student, teacher, width in (("plain", "narrow", 9), ("narrow", "plain", 12), ("narrow", "narrow", 9)):
        plugin = Distillation(teacher=str(tmp_path / f"{teacher}.safetensors"), alpha=1.0)
        run, found = terms(plugin, load(tmp_path / f"{student}.safetensors", layers()))
        (model,) = teacher_distillation(plugin).models.values()
        assert model.get_parameter("first.weight").shape == (width, 64)
        assert found["kd"] > 0
        x = run.sample_batch()[0]
        expected = load(tmp_path / f"{teacher}.safetensors", layers()).eval()
        with torch.no_grad():
            assert torch.equal(model(x), expected(x))


def test_a_function_can_return_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_teachers")

    def trained(num_classes: int) -> nn.Module:
        model = LeNet300((1, 8, 8), num_classes)
        model.fc3.bias.data[0] = 5.0
        return model

    module.trained = trained  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_teachers", module)
    _, found = terms(Distillation(teacher="my_teachers:trained"))
    assert found["kd"] > 0


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("torchvision:resnet18", "DEFAULT"),
        ("resnet18", "DEFAULT"),
        ("torchvision:resnet18:IMAGENET1K_V1", "IMAGENET1K_V1"),
    ],
)
def test_a_torchvision_teacher_has_its_trained_weights(
    name: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.models

    asked: list[tuple[str, Any]] = []

    def get_model(architecture: str, weights: Any) -> nn.Module:
        asked.append((architecture, weights))
        return small_resnet()

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    _, found = terms(Distillation(teacher=name))
    assert asked == [("resnet18", weights)] * 2  # checked before anything trains, and read when the stage begins
    assert found["kd"] > 0


def test_a_failed_download_of_torchvision_weights_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.models

    def get_model(architecture: str, weights: Any) -> nn.Module:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    with pytest.raises(
        UsageError, match=r"torchvision:resnet18: cannot load its weights: no route to host(\nin plugin .*)?$"
    ):
        terms(Distillation(teacher="torchvision:resnet18"))
    with pytest.raises(UsageError, match=r"torchvision:resnet81: no such model: did you mean"):
        terms(Distillation(teacher="torchvision:resnet81"))


# Refused teachers.


def test_a_teacher_with_another_number_of_classes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(model=small_resnet(classes=7), classes=7).export(tmp_path / "seven.safetensors")
    with pytest.raises(UsageError, match=r"seven\.safetensors: it has 7 classes: expected the student's 10"):
        terms(Distillation(teacher=str(tmp_path / "seven.safetensors"), teacher_model="resnet20"))
    module = ModuleType("my_teachers")
    module.seven = lambda: LeNet300((1, 8, 8), 7)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_teachers", module)
    with pytest.raises(UsageError, match="my_teachers:seven: it has 7 classes: expected the student's 10"):
        terms(Distillation(teacher="my_teachers:seven"))


def test_a_damaged_teacher_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(files["one"].read_bytes())
    data[-5] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(data)
    with pytest.raises(MakeweightError, match=r"bad\.safetensors is damaged[^\n]*(\nin plugin .*)?$"):
        terms(Distillation(teacher=str(tmp_path / "bad.safetensors")))


def test_a_teacher_of_another_architecture_or_input_shape_is_refused(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MakeweightError, match=r"resnet\.safetensors: tensor 'fc1\.weight' of the model is missing"):
        terms(Distillation(teacher=str(files["resnet"])))
    module = ModuleType("my_teachers")
    module.large = lambda: LeNet300((1, 28, 28), 10)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_teachers", module)
    with pytest.raises(UsageError, match=r"my_teachers:large: it cannot run on the student's examples \("):
        terms(Distillation(teacher="my_teachers:large"))
    with pytest.raises(UsageError, match=r"one\.safetensors: it cannot run on the student's examples \("):
        terms(Distillation(teacher=str(files["one"]), teacher_model="lenet5"))  # lenet5's kernels are larger


def test_a_missing_teacher_file_is_refused() -> None:
    with pytest.raises(UsageError, match=r"kd\.teacher nowhere\.safetensors: expected an exported model"):
        terms(Distillation(teacher="nowhere.safetensors"))


# The network at the start of the stage.


def test_the_initial_teacher_is_the_network_at_the_start_of_the_stage() -> None:
    plugin = Distillation(teacher="initial", alpha=0.5)
    began: dict[str, torch.Tensor] = {}

    def begin(trainer: Trainer) -> None:
        began.update({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})

    run = staged(small_resnet(), [Distillation(weight=0)], [plugin, Look(begin)], lr=0.05)
    metrics = run.fit()
    (teacher,) = teacher_distillation(plugin).models.values()
    assert_same_bits(began, teacher.state_dict())
    trained = run.model.state_dict()
    assert all(not torch.equal(trained[name], began[name]) for name, _ in run.model.named_parameters())
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert metrics["train_kd"] > 0


@pytest.mark.slow  # a run for every checkpoint
def test_the_initial_teacher_is_the_same_bit_for_bit_when_resumed_from_every_checkpoint(
    tmp_path: Path,
) -> None:
    def run(out: Path, resume: bool = False) -> tuple[Run, Distillation]:
        second = Distillation(teacher="initial", attention=100.0)
        stages: list[list[object]] = [[Distillation(weight=0)], [second]]
        found = staged(small_resnet(), *stages, out=out, resume=resume, lr=0.05, checkpoint_every=1,
                       keep_checkpoints=100)  # fmt: skip
        found.fit()
        return found, second

    whole, plugin = run(tmp_path / "whole")
    (teacher,) = teacher_distillation(plugin).models.values()
    began = checkpoint.load(tmp_path / "whole" / "checkpoints" / "step-000000004")["model"]
    assert_same_bits(began, teacher.state_dict())
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert len(checkpoints) == 10  # before the first step and after each, in both stages
    for path in checkpoints:
        shutil.copytree(path, tmp_path / f"from {path.name}" / "checkpoints" / path.name)
        again, plugin = run(tmp_path / f"from {path.name}", resume=True)
        (resumed,) = teacher_distillation(plugin).models.values()
        assert_same_bits(began, resumed.state_dict())
        assert_same_bits(whole.model.state_dict(), again.model.state_dict())


def test_the_initial_teacher_is_taken_before_another_plugin_prunes() -> None:
    plugin = Distillation(teacher="initial")
    run = trainer(Prune(sparsity=0.9, schedule="one-shot"), plugin, epochs=1)
    run.fit()
    (teacher,) = teacher_distillation(plugin).models.values()
    assert (teacher.get_parameter("fc1.weight") == 0).float().mean() < 0.01
    assert (run.model.get_parameter("fc1.weight") == 0).float().mean() == pytest.approx(0.9, abs=1e-3)


def test_initial_weights_of_a_checkpoint_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    run = trainer(Distillation(teacher="initial"), epochs=1, out=tmp_path)
    run.fit()
    saved = checkpoint.newest(tmp_path / "checkpoints", pytest.fail)
    assert saved is not None
    saved["began"]["fc1.weight"] = torch.zeros(3)
    shutil.rmtree(tmp_path / "checkpoints")
    checkpoint.save(tmp_path / "checkpoints", 4, saved)
    with pytest.raises(MakeweightError, match=r"'fc1\.weight' has shape \[3\]"):
        trainer(Distillation(teacher="initial"), epochs=1, out=tmp_path, resume=True).fit()


def test_stages_may_differ_in_their_teachers(files: dict[str, Path]) -> None:
    """Each stage has its own losses and auxiliary modules."""
    terms: list[list[str]] = []
    auxiliary: list[list[str]] = []

    def begin(trainer: Trainer) -> None:
        terms.append(list(trainer.losses))
        auxiliary.append(list(trainer.auxiliary))

    plugins = [Distillation(), Distillation(teacher=str(files["one"]), alpha=1.0), Distillation(weight=0)]
    run = staged(build("lenet300", (1, 8, 8), 10), *([plugin, Look(begin)] for plugin in plugins), lr=0.05)
    metrics = run.fit()
    assert terms == [["task", "kd_labels", "kd", "kd_features"], ["task", "kd"], ["task"]]
    assert auxiliary == [["kd", "kd_adapters"], [], []]
    assert metrics["train_task"] > 0


def test_with_alpha_1_the_labels_have_no_weight(files: dict[str, Path]) -> None:
    metrics = trainer(Distillation(teacher=str(files["one"]), alpha=1.0)).fit()
    assert metrics["train_task"] == 0 < metrics["train_kd"]


def test_sections_may_differ_from_stage_to_stage() -> None:
    """A classifier goes with its section; a classifier of the same shape does not take its weights."""
    began: list[dict[str, torch.Tensor]] = []
    look = Look(begin=lambda trainer: began.append({k: v.clone() for k, v in trainer.auxiliary.state_dict().items()}))
    ended: list[dict[str, torch.Tensor]] = []

    def end(trainer: Trainer, metrics: dict[str, float]) -> None:
        ended.append({name: tensor.clone() for name, tensor in trainer.auxiliary.state_dict().items()})

    look.end = end
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10))
    plugins = [Distillation(sections=each) for each in (["1"], ["3"], ["1"], ["1", "3"])]
    run = staged(model, *([plugin, look] for plugin in plugins), lr=0.05)
    run.fit()
    heads = [{name.split(".")[1] for name in each if name.startswith("kd.")} for each in began]
    assert heads == [{"after:1"}, {"after:3"}, {"after:1"}, {"after:1", "after:3"}]
    for earlier in (ended[0], ended[1]):
        values = list(earlier.values())
        assert not any(torch.equal(values[0], tensor) for tensor in began[2].values())
    assert [list(self_distillation(plugin).sections) for plugin in plugins] == [["1"], ["3"], ["1"], ["1", "3"]]


def test_exits_without_a_stage_of_self_distillation_are_refused_before_training() -> None:
    with pytest.raises(UsageError, match=r"kd\.exits all: expected an earlier stage without a teacher"):
        trainer(Distillation(teacher="initial", exits="all")).set_up()
