"""Teachers: files, ensembles, other architectures, functions, torchvision, and the network as the stage began."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

from makeweight import MakeweightError, Trainer, UsageError, load
from makeweight.models import LeNet300, build
from makeweight_kd import Distillation
from makeweight_kd.losses import divergence

from .helpers_kd import small_resnet, stages, trainer


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
    for part in (plugin._own, plugin._taught):
        if part is not None:
            part.capturing = True
    output = run.model.train()(batch[0])
    return run, {name: float(term(batch, output).detach()) for name, term in run.losses.items()}


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_the_terms_are_hintons(files: dict[str, Path], names: list[str]) -> None:
    """(1 - α)·CE + α T² KL(teacher ‖ student), where several teachers speak with their mean probability."""
    given: Any = [str(files[name]) for name in names] if len(names) > 1 else str(files[names[0]])
    run, found = terms(Distillation(teacher=given, alpha=0.7, temperature=4.0))
    x, y = run.sample_batch()
    with torch.no_grad():
        teachers = [load(files[name], LeNet300((1, 8, 8), 10))(x) for name in names]
        student = run.model(x)
    assert list(found) == ["task", "kd"]
    assert found["task"] == pytest.approx(0.3 * cross_entropy(student, y).item(), rel=1e-6)
    assert found["kd"] == pytest.approx(0.7 * 16 * divergence(student, teachers, 4.0).item(), rel=1e-6)


def test_teachers_are_named_with_commas_on_a_command_line(files: dict[str, Path]) -> None:
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
    assert metrics["train_task"] == 0.0  # alpha 1: the teacher's word alone
    assert len(run.auxiliary) == 0


def test_a_teacher_is_frozen_in_eval_and_in_no_state(files: dict[str, Path]) -> None:
    plugin = Distillation(teacher=str(files["resnet"]))
    run = trainer(plugin, model=small_resnet())
    run.set_up()
    assert plugin._taught is not None
    (teacher,) = plugin._taught.models.values()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    run.fit()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    mine = {id(parameter) for parameter in teacher.parameters()}
    assert not mine & {id(parameter) for parameter in run._parameters}
    assert plugin.state_dict() == {"initial": None}
    assert plugin._taught.said is None


def test_a_teacher_speaks_in_the_runs_precision(files: dict[str, Path]) -> None:
    plugin = Distillation(teacher=str(files["one"]))
    run = trainer(plugin, precision="bf16", epochs=1)
    run.set_up()
    assert plugin._taught is not None
    seen: set[torch.dtype] = set()
    (teacher,) = plugin._taught.models.values()
    teacher.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    run.fit()
    assert seen == {torch.bfloat16}


def test_any_safetensors_file_can_teach(files: dict[str, Path], tmp_path: Path) -> None:
    save_file(load(files["one"], LeNet300((1, 8, 8), 10)).state_dict(), tmp_path / "plain.safetensors")
    _, exported = terms(Distillation(teacher=str(files["one"])))
    _, plain = terms(Distillation(teacher=str(tmp_path / "plain.safetensors")))
    assert plain == exported


def test_a_function_gives_a_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_teacher_of_torchvision_comes_with_its_weights(
    name: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.models

    asked: list[tuple[str, Any]] = []

    def get_model(architecture: str, weights: Any) -> nn.Module:
        asked.append((architecture, weights))
        return small_resnet()

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    _, found = terms(Distillation(teacher=name))
    assert asked == [("resnet18", weights)]
    assert found["kd"] > 0


def test_weights_of_torchvision_that_cannot_be_had_are_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.models

    def get_model(architecture: str, weights: Any) -> nn.Module:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    with pytest.raises(
        UsageError, match=r"torchvision:resnet18: its weights cannot be had: no route to host(\nin plugin .*)?$"
    ):
        terms(Distillation(teacher="torchvision:resnet18"))
    with pytest.raises(UsageError, match=r"torchvision:resnet81: no such model: did you mean"):
        terms(Distillation(teacher="torchvision:resnet81"))


# What cannot teach.


def test_a_teacher_with_other_classes_is_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(model=small_resnet(classes=7), classes=7).export(tmp_path / "seven.safetensors")
    with pytest.raises(UsageError, match=r"seven\.safetensors: it knows 7 classes, the student 10"):
        terms(Distillation(teacher=str(tmp_path / "seven.safetensors"), teacher_model="resnet20"))
    module = ModuleType("my_teachers")
    module.seven = lambda: LeNet300((1, 8, 8), 7)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_teachers", module)
    with pytest.raises(UsageError, match="my_teachers:seven: it knows 7 classes, the student 10"):
        terms(Distillation(teacher="my_teachers:seven"))


def test_a_damaged_teacher_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(files["one"].read_bytes())
    data[-5] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(data)
    with pytest.raises(MakeweightError, match=r"bad\.safetensors is damaged[^\n]*(\nin plugin .*)?$"):
        terms(Distillation(teacher=str(tmp_path / "bad.safetensors")))


def test_a_teacher_of_another_model_or_of_other_examples_is_refused(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MakeweightError, match=r"resnet\.safetensors: the model's 'fc1\.weight' is not in it"):
        terms(Distillation(teacher=str(files["resnet"])))
    module = ModuleType("my_teachers")
    module.large = lambda: LeNet300((1, 28, 28), 10)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_teachers", module)
    with pytest.raises(UsageError, match=r"my_teachers:large: it cannot be called on the student's examples \("):
        terms(Distillation(teacher="my_teachers:large"))
    with pytest.raises(UsageError, match=r"one\.safetensors: it cannot be called on the student's examples \("):
        terms(Distillation(teacher=str(files["one"]), teacher_model="lenet5"))  # whose kernels are larger


def test_a_teacher_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"kd\.teacher nowhere\.safetensors: expected an exported model"):
        terms(Distillation(teacher="nowhere.safetensors"))


# The network as the stage began.


def test_the_initial_teacher_is_the_network_as_the_stage_began() -> None:
    plugin = Distillation(teacher="initial", alpha=0.5)
    run = trainer(plugin, model=small_resnet(), stages=stages({"weight": 0}, {"teacher": "initial"}), lr=0.05)
    before: dict[str, torch.Tensor] = {}
    teachers: list[nn.Module] = []

    def look(batch: Any, output: torch.Tensor) -> torch.Tensor:
        if run.stage_number == 1:
            assert plugin._taught is not None
            if not before:
                before.update({name: tensor.clone() for name, tensor in run.model.state_dict().items()})
            teachers[:] = [teacher for name, teacher in plugin._taught.models.items() if name == "initial"]
        return output.sum() * 0

    run.losses["look"] = look
    metrics = run.fit()
    (teacher,) = teachers
    state = teacher.state_dict()
    parameters = [name for name, _ in run.model.named_parameters()]
    assert all(torch.equal(before[name], state[name]) for name in parameters)
    assert any(not torch.equal(run.model.state_dict()[name], state[name]) for name in parameters)
    assert not teacher.training
    assert metrics["train_kd"] > 0


def test_the_initial_teacher_is_taken_before_another_plugin_prunes() -> None:
    from makeweight_prune import Prune

    plugin = Distillation(teacher="initial")
    run = trainer(Prune(sparsity=0.9, schedule="one-shot"), plugin, epochs=1)
    run.fit()
    assert plugin._taught is not None
    assert plugin._taught.initial is not None
    assert (plugin._taught.initial["fc1.weight"] == 0).float().mean() < 0.01
    assert (run.model.get_parameter("fc1.weight") == 0).float().mean() == pytest.approx(0.9, abs=1e-3)


def test_initial_weights_of_a_checkpoint_that_do_not_fit_are_refused() -> None:
    plugin = Distillation(teacher="initial")
    run = trainer(plugin, epochs=1)
    plugin.load_state_dict({"initial": {"fc1.weight": torch.zeros(3)}})
    run.set_up()
    run._prepare()
    assert plugin._taught is not None
    with pytest.raises(MakeweightError, match="initial weights do not fit the model"):
        plugin._taught._say(run.sample_batch())


def test_stages_may_have_other_teachers_and_none(files: dict[str, Path]) -> None:
    """The heads of a stage in which the network is its own teacher take part in the others with weight 0."""
    plugin = Distillation()
    tables: list[dict[str, Any]] = [{}, {"teacher": str(files["one"]), "alpha": 1.0}, {"weight": 0}]
    run = trainer(plugin, stages=stages(*tables), lr=0.05)
    seen: list[dict[str, float]] = []

    run.log = lambda values: seen.append(dict(values))  # type: ignore[method-assign]
    run.fit()
    own, taught, neither = seen
    assert own["train_kd_labels"] > 0 < own["train_kd"]
    assert taught["train_kd_labels"] == 0 == taught["train_task"]
    assert taught["train_kd"] > 0
    assert neither["train_kd_labels"] == 0 == neither["train_kd"]
    assert neither["train_task"] > 0


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([{}, {"sections": ["fc1"]}], r"kd\.sections \['fc1'\]: expected the same in every stage"),
        ([{}, {"exits": "all"}], r"kd\.exits all: expected the same in every stage"),
        ([{"teacher": "initial", "exits": "all"}], r"kd\.exits all: expected a stage without a teacher"),
    ],
)
def test_what_is_built_before_the_first_stage_is_the_same_in_all(tables: list[dict[str, Any]], message: str) -> None:
    plugin = Distillation(**tables[0])
    with pytest.raises(UsageError, match=message):
        trainer(plugin, stages=stages(*tables)).set_up()
