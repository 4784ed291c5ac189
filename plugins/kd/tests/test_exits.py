"""Exits: exported, evaluated one by one and as an ensemble, and taken early by confident examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from makeweight import MakeweightError, UsageError, load, load_tensors
from makeweight.files.artifact import Artifact, read, write
from makeweight.models.by_name import build
from makeweight_kd import Distillation, exits_of
from makeweight_kd.check import early_exit_problem
from makeweight_kd.exits import exit_policies
from makeweight_kd.record import read_exits

from .helpers_kd import small_resnet, trainer


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-20 for images of 8×8, trained for one epoch and exported with both of its exits."""
    path = tmp_path_factory.mktemp("exits") / "model.safetensors"
    run = trainer(Distillation(exits="all"), model=small_resnet(), epochs=1, lr=0.1)
    run.fit()
    run.export(path)
    return path


@pytest.fixture
def model(exported: Path) -> nn.Module:
    return load(exported, small_resnet(seed=1)).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_loaded_model_computes_its_deepest_exit_and_offers_all_exits(model: Any, x: Tensor) -> None:
    with torch.no_grad():
        found = model.exits(x)
        assert [logits.shape for logits in found] == [(40, 10)] * 3
        assert torch.equal(found[-1], model(x))
        for index in range(2):
            assert torch.equal(model.exits.at(x, index), found[index])
        mean = torch.stack([logits.softmax(1) for logits in found]).mean(0)
        assert torch.allclose(model.exits.ensemble(x).exp(), mean, atol=1e-6)
        assert torch.allclose(model.exits({"x": x})[0], found[0])


def test_exits_follow_the_models_precision_and_are_replaced_by_a_load(model: Any, exported: Path, x: Tensor) -> None:
    with torch.no_grad():
        single = model.exits(x)
        for rounded, logits in zip(model.double().exits(x.double()), single, strict=True):
            assert rounded.dtype == torch.float64
            assert torch.allclose(rounded, logits.double(), atol=1e-4)
        for index in (-1, 2):
            with pytest.raises(IndexError, match="expected 0 to 1"):
                model.exits.at(x, index)
        again: Any = load(exported, load(exported, small_resnet(seed=2))).eval()
        assert torch.equal(again.exits(x)[0], single[0])
    assert list(exit_policies(again, [0.9], [2])) == ["exit 2", "ensemble", "confidence 0.9"]


def test_exported_exits_compute_as_the_trained_heads(tmp_path: Path, x: Tensor) -> None:
    plugin = Distillation(exits="all")
    run = trainer(plugin, model=small_resnet(), epochs=1, lr=0.1)
    run.fit()
    run.export(tmp_path / "model.safetensors")
    restored: Any = load(tmp_path / "model.safetensors", small_resnet(seed=3)).eval()
    with torch.no_grad():
        run.model.eval()
        run.auxiliary.eval()
        stage: Tensor = torch.relu(run.model.bn1(run.model.conv1(x)))  # type: ignore[operator]
        for name, head, logits in zip(("layer1", "layer2"), plugin.heads.values(), restored.exits(x), strict=False):
            stage = run.model.get_submodule(name)(stage)
            assert torch.allclose(head(stage), logits, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_each_example_takes_the_first_exit_that_reaches_the_threshold(model: Any, x: Tensor, share: float) -> None:
    with torch.no_grad():
        every = torch.stack(model.exits(x))  # [exits, B, classes]
        confidences = every.softmax(2).amax(2)
        threshold = 1.1 if share == 1 else float(confidences[:2].amax(0).quantile(share))
        logits, taken = model.exits.confident(x, threshold)
    sure = confidences >= threshold
    sure[-1] = True
    assert torch.equal(taken, sure.int().argmax(0))
    assert torch.allclose(logits, every[taken, torch.arange(40)], atol=1e-5)
    assert int((taken < 2).sum()) == pytest.approx(40 * (1 - share), abs=1)


def multiply_accumulates(function: Any) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return float(counter.get_total_flops() / 2)


def test_the_network_after_an_exit_is_not_computed_for_examples_that_left(model: Any, x: Tensor) -> None:
    """A batch costs the sum over its examples of the multiply-accumulates up to the exit that each takes."""
    one = x[:1]
    first, whole = (multiply_accumulates(lambda t=t: model.exits.confident(one, t)) for t in (0.0, 1.1))
    assert multiply_accumulates(lambda: model.exits.at(one, 0)) == first
    assert 0.3 < first / whole < 0.5  # the first of three stages and a small head
    assert multiply_accumulates(lambda: model(one)) < whole < 1.2 * multiply_accumulates(lambda: model(one))
    with torch.no_grad():
        threshold = float(model.exits(x)[0].softmax(1).amax(1).median())
        taken = model.exits.confident(x, threshold)[1]
    second = multiply_accumulates(lambda: model.exits.at(one, 1)) + first - multiply_accumulates(
        lambda: _until_head(model, one)
    )  # fmt: skip
    costs = torch.tensor([first, second, whole], dtype=torch.float64)
    expected = float(costs[taken].sum())
    assert multiply_accumulates(lambda: model.exits.confident(x, threshold)) == pytest.approx(expected, rel=1e-9)
    assert len(taken.unique()) > 1


def _until_head(model: Any, x: Tensor) -> Tensor:
    """The trunk up to the end of the first section."""
    output: Tensor = model.layer1(torch.relu(model.bn1(model.conv1(x))))
    return output


def test_early_exit_is_refused_in_training_mode(model: Any, x: Tensor) -> None:
    with pytest.raises(MakeweightError, match=r"model\.eval\(\)"):
        model.train().exits.confident(x, 0.5)


def test_exits_are_not_in_the_models_state_dict(exported: Path, model: Any) -> None:
    import copy

    assert list(model.state_dict()) == list(small_resnet().state_dict())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.fc.bias.fill_(100.0)
        x = torch.zeros(2, 1, 8, 8)
        assert torch.equal(twin.exits(x)[-1], twin(x))
        assert torch.equal(model.exits(x)[-1], model(x))
    assert any(name.startswith("kd.exit1.") for name in load_tensors(exported))


def test_exits_can_be_exported_selectively(tmp_path: Path, x: Tensor) -> None:
    run = trainer(Distillation(exits=2), model=small_resnet(), epochs=1)
    run.set_up()
    run.export(tmp_path / "model.safetensors")
    restored: Any = load(tmp_path / "model.safetensors", small_resnet()).eval()
    assert restored.exits.numbers == [2]
    assert restored.exits.sections == ["layer2"]
    assert len(restored.exits(x)) == 2
    assert list(exit_policies(restored, [0.5, 0.9])) == ["exit 2", "ensemble", "confidence 0.5", "confidence 0.9"]


def test_exits_after_vectors_are_exported(tmp_path: Path, x: Tensor) -> None:
    run = trainer(Distillation(exits="all"))
    run.set_up()
    run.export(tmp_path / "model.safetensors")
    restored: Any = load(tmp_path / "model.safetensors", build("lenet300", (1, 8, 8), 10)).eval()
    assert restored.exits.sections == ["fc1", "fc2"]
    with torch.no_grad():
        assert torch.allclose(restored.exits.confident(x, 1.1)[0], restored(x), atol=1e-6)


def test_a_model_without_exits_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    run = trainer(Distillation())
    run.set_up()
    artifact = run.export(tmp_path / "model.safetensors")
    assert artifact is not None
    restored = load(tmp_path / "model.safetensors", build("lenet300", (1, 8, 8), 10))
    with pytest.raises(MakeweightError, match=r"the model has no exits: it was exported without --kd\.exits"):
        exits_of(restored)
    for options, given in (({"exits": "all"}, "exits all"), ({"confidence": 0.5}, r"confidence 0\.5")):
        with pytest.raises(UsageError, match=rf"kd\.{given}: the file has no exits: export it with"):
            Distillation(**options).on_evaluate(artifact, restored)
    assert Distillation().on_evaluate(artifact, restored) == {}


class Long(nn.Module):
    """A network with a connection that bypasses a section, or one whose examples depend on each other."""

    def __init__(self, mixing: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 8), nn.Linear(8, 64), nn.Linear(64, 10)
        self.mixing = mixing

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        after = self.second(torch.relu(self.first(x)))
        logits: Tensor = self.last(after - after.mean(0) if self.mixing else x + after)
        return logits


@pytest.mark.parametrize(("mixing", "reason"), [(False, "must match the size"), (True, "logits change")])
def test_exits_at_which_examples_cannot_leave_the_batch_are_refused(mixing: bool, reason: str) -> None:
    with pytest.raises(
        UsageError, match=rf"kd\.exits all: examples cannot leave the batch after first .*{reason}.*--kd\.sections"
    ):
        trainer(Distillation(exits="all", sections=["first"]), model=Long(mixing)).set_up()


@pytest.mark.parametrize(
    ("name", "size"), [("densenet121", 32), ("mobilenet_v3_small", 64), ("vgg11", 32), ("shufflenet_v2_x0_5", 32)]
)
def test_examples_can_leave_torchvision_networks_after_each_section(name: str, size: int) -> None:
    from makeweight_kd.sections import find_sections

    from .helpers_kd import traced

    with torch.device("meta"):
        model = build(name, (3, size, size), 10)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(0.01) if tensor.is_floating_point() else tensor.zero_()
    trace = traced(model, 3, size, size)
    assert [early_exit_problem(trace, name) for name in find_sections(trace)] == [None] * len(find_sections(trace))


RECORD = {"number": 1, "section": "fc1", "kind": "vector", "widths": [300, 300], "stride": 2, "classes": 10}


def damaged(**changes: Any) -> Any:
    return {"exits": [RECORD | changes]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "damaged: expected a list"),
        ({"exits": []}, "damaged: expected a list"),
        ({"exits": ["fc1"]}, "damaged: expected number"),
        (damaged(more=1), "damaged: expected number"),
        (damaged(widths=[300]), "is damaged"),
        (damaged(widths=[300, 1 << 40]), "is damaged"),
        (damaged(widths="300"), "is damaged"),
        (damaged(widths=[300, True]), "is damaged"),
        (damaged(classes=0), "is damaged"),
        (damaged(kind="code"), "is damaged"),
        (damaged(section=["fc1"]), "is damaged"),
        (damaged(stride=7), "is damaged"),
        (damaged(section="fc9"), "exit 1 reads module 'fc9', which the model does not have: did you mean"),
        (damaged(section=""), "exit 1 reads module ''"),
        (
            damaged(widths=[300, 1 << 20]),
            r"kd\.exit1\.bottleneck\.1\.weight: expected a torch\.float32 tensor of shape",
        ),
        (damaged(number=2), r"kd\.exit2\.bottleneck\.1\.weight: expected"),
    ],
)
def test_a_damaged_record_is_refused(record: Any, message: str) -> None:
    head = {"bottleneck.1.weight": (300, 300), "bottleneck.1.bias": (300,), "classifier.weight": (10, 300),
            "classifier.bias": (10,)}  # fmt: skip
    tensors = {f"kd.exit1.{name}": torch.zeros(shape) for name, shape in head.items()}
    with pytest.raises(MakeweightError, match=message):
        read_exits(record, tensors, build("lenet300", (1, 8, 8), 10))


def test_the_record_is_json_and_matches_the_tensors(exported: Path, tmp_path: Path) -> None:
    artifact = read(exported)
    exits = artifact.metadata["kd"]["exits"]
    assert json.loads(json.dumps(exits)) == exits
    assert [(each["section"], each["widths"], each["classes"]) for each in exits] == [
        ("layer1", [16, 32, 64], 10), ("layer2", [32, 64], 10),
    ]  # fmt: skip
    tensors = dict(artifact.tensors) | {"kd.exit2.more": torch.zeros(1)}
    write(Artifact(tensors, artifact.metadata), tmp_path / "more.safetensors")
    with pytest.raises(MakeweightError, match=r"more\.safetensors: holds kd\.exit2\.more, which exit 2 does not have"):
        load(tmp_path / "more.safetensors", small_resnet())
