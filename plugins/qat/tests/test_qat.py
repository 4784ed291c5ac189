from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from makeweight import MakeweightError, Trainer, UsageError, load, load_tensors
from makeweight.files.artifact import Artifact, read, write
from makeweight.models.lenets import LeNet300
from makeweight_kd import Distillation
from makeweight_prune import Prune
from makeweight_qat import Quantization
from makeweight_qat.record import read_activations


class Residual(nn.Module):
    """A shared ReLU, an addition, batch norms, a concatenation and functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.narrow = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(10 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, 1, 8, 8] -> [B, 10]
        x = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(x))
        out += x
        out = self.relu(out)
        out = torch.cat([out, relu(self.narrow(out))], 1)
        logits: torch.Tensor = self.fc(nn.functional.max_pool2d(out, 2).flatten(1))
        return logits


def data(count: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def trainer(*plugins: object, model: nn.Module | None = None, epochs: int = 2, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = LeNet300((1, 8, 8), 10) if model is None else model
    run = Trainer(model, data(), data(), plugins=plugins, **{"batch_size": 32, "epochs": epochs, **settings})
    run.journal.console.quiet = True
    return run


def residual() -> Residual:
    torch.manual_seed(0)
    model = Residual()
    nn.init.uniform_(model.bn1.weight, -1, 1)  # negative factors are folded too
    return model


@pytest.mark.parametrize("ranges", ["moving", "minmax", "percentile", "learned"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_loaded_file_computes_as_the_trained_model(ranges: Any, bits: int, tmp_path: Path) -> None:
    run = trainer(Quantization(weights=bits, activations=max(bits, 3), ranges=ranges), model=residual())
    run.fit()
    run.export(tmp_path / "x.safetensors")
    restored = load(tmp_path / "x.safetensors", run.fresh_model()).eval()
    x = data()[0]
    with torch.no_grad():
        assert torch.equal(restored(x), run.model.eval()(x))
    integers = read(tmp_path / "x.safetensors").tensors
    limit = 2 ** (bits - 1) - 1
    for layer in ("conv1", "conv2", "narrow", "fc"):
        assert integers[f"{layer}.weight"].dtype == torch.int8
        assert int(integers[f"{layer}.weight"].abs().max()) <= limit
        values = load_tensors(tmp_path / "x.safetensors")[f"{layer}.weight"]
        assert len(values[0].unique()) <= 2 * limit + 1
    assert set(load_tensors(tmp_path / "x.safetensors")) == set(Residual().state_dict())


def test_the_dry_run_lists_quantized_tensors_and_folded_layers() -> None:
    said = trainer(Quantization(), model=residual()).check()["qat"]
    assert said is not None
    weights, activations, folded = said.split("; ")
    assert weights == "weights of conv1 8, conv2 8, narrow 8, fc 8 (bits)"
    assert activations == "activations x 8, relu 8, bn2 8, relu_1 8, relu_2 8, cat 8 (bits, ranges moving)"
    assert folded == "folded: conv1 + bn1 + relu, conv2 + bn2, narrow + relu"


def test_the_model_keeps_its_names_and_its_hooks() -> None:
    model = residual()
    seen: list[str] = []
    model.bn2.register_forward_hook(lambda module, inputs, output: seen.append("bn2"))
    run = trainer(Quantization(weights=0), model=model)
    run.set_up()
    assert set(run.model.state_dict()) == set(Residual().state_dict())
    before = len(seen)
    run.model(data()[0][:2])
    assert len(seen) == before + 1


def test_bits_by_layer_skip_and_0_bits() -> None:
    run = trainer(Quantization(weights={"fc*": 4, "fc2": 2}, activations={"fc3": 5}, skip=["first"]))
    run.fit()
    weights: dict[str, Any] = {name: layer.weight for name, layer in run.layers().items()}
    assert len(weights["fc1"].unique()) > 1000
    assert max(len(row.unique()) for row in weights["fc2"]) == 3
    assert 3 < max(len(row.unique()) for row in weights["fc3"]) <= 15
    plugin: Any = run.plugins.by_name["qat"]
    assert plugin.plan.bits == {("", "relu_1"): 5}
    assert trainer(Quantization(skip=["last", "fc1"])).check()["qat"].startswith("weights of fc2 8 (bits)")  # type: ignore[union-attr]


def test_quantization_starts_at_begin_and_ranges_are_fixed_after_freeze() -> None:
    grids, scales = [], []
    run = trainer(Quantization(begin=1, freeze=2), epochs=3)

    def look(batch: Any, output: Any) -> torch.Tensor:
        grids.append(len(run.model.fc1.weight[0].unique()))  # type: ignore[union-attr,index]
        scales.append(run.auxiliary.get_buffer("qat.scale").tolist())
        return torch.zeros(())

    run.losses["look"] = look
    run.fit()
    assert grids[:5] == [64] * 5
    assert max(grids[5:]) < 64
    assert len({tuple(each) for each in scales[6:10]}) == 2  # looked at in step 8
    assert all(one == other for one, other in pairwise(scales[11:]))


def test_pruned_weights_stay_zero_in_either_order_of_plugins(tmp_path: Path) -> None:
    for plugins in ([Prune(sparsity=0.8), Quantization(weights=4)], [Quantization(weights=4), Prune(sparsity=0.8)]):
        run = trainer(*plugins)
        run.fit()
        run.export(tmp_path / "x.safetensors")
        for name, tensor in load_tensors(tmp_path / "x.safetensors").items():
            if name.endswith("weight"):
                mask = run.masks.of("prune")[name]
                assert not tensor[~mask].any()
                assert max(len(row.unique()) for row in tensor) <= 15


def test_auxiliary_heads_of_other_plugins_are_not_quantized() -> None:
    run = trainer(Distillation(), Quantization(weights=2), model=residual())
    run.fit()
    plugin: Any = run.plugins.by_name["qat"]
    assert set(plugin.quantizers) == {"conv1", "conv2", "narrow", "fc"}
    for module in run.auxiliary["kd"].modules():
        assert not hasattr(module, "parametrizations")
    assert run.metrics["train_kd"] > 0


def test_a_loaded_model_trains_on_with_new_quantizers(tmp_path: Path) -> None:
    run = trainer(Quantization(activations=3))
    run.fit()
    run.export(tmp_path / "x.safetensors")
    again = load(tmp_path / "x.safetensors", run.fresh_model())
    assert "forward" in vars(again)
    other = trainer(Quantization(), model=again)
    other.fit()
    other.export(tmp_path / "y.safetensors")
    assert [bits for *_, bits in read(tmp_path / "y.safetensors").metadata["qat"]["activations"]] == [8, 8, 8]
    again = load(tmp_path / "y.safetensors", other.fresh_model())  # the quantizers of the first file are detached
    x = data()[0]
    with torch.no_grad():
        assert torch.equal(again.eval()(x), other.model.eval()(x))


def test_a_loaded_model_trains_on_without_quantization(tmp_path: Path) -> None:
    run = trainer(Quantization(activations=3))
    run.fit()
    run.export(tmp_path / "x.safetensors")
    again = load(tmp_path / "x.safetensors", run.fresh_model())
    other = trainer(Quantization(weights=0, activations=0), model=again)
    other.fit()
    other.export(tmp_path / "y.safetensors")
    for model in (again, load(tmp_path / "y.safetensors", other.fresh_model())):
        assert "forward" not in vars(model)
        assert not any(name.startswith("_quantize") for name in vars(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": 1}, "weights 1: expected 2 to 8 bits, or 0 for none"),
        ({"activations": 9}, "activations 9: expected 2 to 8 bits"),
        ({"weights": {"fc1": 16}}, "weights fc1 16: expected 2 to 8 bits"),
        ({"percentile": 20.0}, "percentile 20: expected 50 < percentile <= 100"),
        ({"begin": -1.0}, "begin -1: expected an epoch"),
        ({"begin": 2.0, "freeze": 1.0}, "freeze 1: expected an epoch not before begin 2"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Quantization(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"nope": 4}}, "no layer matches 'nope'"),
        ({"skip": ["fc9"]}, "no layer matches 'fc9'"),
        ({"begin": 2.0}, "qat.begin 2: expected less than the 2 epochs"),
    ],
)
def test_options_that_do_not_fit_the_run_are_refused_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trainer(Quantization(**options)).set_up()


def test_begin_is_not_checked_in_a_stage_of_0_bits() -> None:
    assert trainer(Quantization(weights=0, activations={"*": 0}, begin=9.0)).check()["qat"] == (
        "weights of no layer (bits); activations not quantized"
    )


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        logits: torch.Tensor = self.fc(x) if x.sum() > 0 else self.fc(-x)
        return logits


def test_the_error_for_a_model_that_cannot_be_traced_names_the_alternative() -> None:
    model = nn.Sequential(nn.Identity(), Branching())
    with pytest.raises(
        UsageError, match=r"module '1' cannot be traced .*: its activations cannot .*--qat.activations 0"
    ):
        trainer(Quantization(), model=model).set_up()
    run = trainer(Quantization(weights=3, activations=0), model=nn.Sequential(nn.Identity(), Branching()))
    run.fit()
    assert max(len(row.unique()) for row in run.layers()["1.fc"].weight) <= 7  # type: ignore[union-attr]


class ByPosition(nn.Module):
    """Its forward reads a tensor's values when it has a second argument, as it has when it is traced by itself."""

    def forward(self, x: torch.Tensor, scale: Any = None) -> torch.Tensor:
        return relu(x) + 1 if scale is None else x * float(scale)


def test_a_forward_that_cannot_be_traced_by_itself_is_named_with_the_reason() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), ByPosition(), nn.Linear(64, 10))
    with pytest.raises(UsageError, match=r"module '2' cannot be traced by torch.fx \(.+\): its activations cannot"):
        trainer(Quantization(), model=model).check()
    assert trainer(Quantization(skip=["last"]), model=model).check()["qat"] is not None  # no quantizer is needed in it


class TwoWays(nn.Module):
    """A forward that can be traced in eval mode only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.sum() > 0:
            return x
        return x + relu(x)


def test_a_forward_that_cannot_be_traced_in_training_mode_is_refused_before_training() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), TwoWays(), nn.Linear(64, 10))
    with pytest.raises(UsageError, match=r"module '2' cannot be traced by torch.fx"):
        trainer(Quantization(), model=model).check()


@pytest.mark.parametrize("ranges", ["moving", "learned"])
def test_a_frozen_batch_norm_stays_frozen(ranges: Any) -> None:
    model = residual()
    model.bn1.eval()
    before, other = model.bn1.running_mean.clone(), model.bn2.running_mean.clone()  # type: ignore[union-attr]
    modes = []
    run = trainer(Quantization(ranges=ranges), model=model)

    def look(batch: Any, output: Any) -> torch.Tensor:
        modes.append((model.bn1.training, model.bn2.training))
        return torch.zeros(())

    run.losses["look"] = look
    run.check()
    run.set_up()
    assert (model.bn1.training, model.bn2.training) == (False, True)
    run.fit()
    assert set(modes) == {(False, True)}
    assert torch.equal(model.bn1.running_mean, before)  # type: ignore[arg-type]
    assert not torch.equal(model.bn2.running_mean, other)  # type: ignore[arg-type]


def test_learned_step_sizes_are_initialised_from_the_data_and_do_not_decay() -> None:
    """With a learning rate near 0 they keep their initial values, although weight decay is on."""
    run = trainer(
        Quantization(ranges="learned"), model=residual(), epochs=1, lr=1e-30, weight_decay=0.5, schedule="constant"
    )
    inputs: list[torch.Tensor] = []
    run.model.register_forward_pre_hook(lambda module, given: inputs.append(given[0]) if module.training else None)
    run.fit()
    plugin: Any = run.plugins.by_name["qat"]
    x = inputs[0]
    assert float(plugin.observed.scales()[0]) == pytest.approx(
        min(2 * float(x.abs().mean()) / 255**0.5, float(x.max() - x.min()) / 255)
    )
    weight: Any = run.model.get_submodule("fc").parametrizations["weight"].original  # type: ignore[index,union-attr]
    expected = torch.minimum(2 * weight.abs().mean(1) / 127**0.5, weight.abs().amax(1) / 127)
    assert plugin.scales(run)["fc"].tolist() == pytest.approx(expected.tolist())
    steps = {id(each) for each in plugin.learned(used=True)}
    assert len(steps) == 4 + 6
    for group in run.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0 if id(parameter) in steps else 0.5)


def test_the_export_size_is_known_before_quantization_begins() -> None:
    sizes = []
    given: list[dict[str, Any]] = [{"begin": 1.0}, {"begin": 1.0, "ranges": "learned"}]
    for options in given:
        run = trainer(Quantization(**options))
        run.set_up()
        sizes.append(run.export_size())
        with pytest.raises(MakeweightError, match=r"qat\.begin 1: training stopped before this epoch"):
            run.artifact()
        run.fit()
        sizes.append(run.export_size())
    dense = sum(4 * tensor.numel() for tensor in run.model.parameters())
    assert max(sizes) < 0.3 * dense
    assert max(sizes) - min(sizes) < 100  # digits of scales in the record


def test_a_shared_weight_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    model[2].weight = model[1].weight
    with pytest.raises(UsageError, match=r"1.weight is also 2.weight: .* put its layers in qat.skip"):
        trainer(Quantization(), model=model).set_up()


def test_a_weight_that_changed_after_quantization_is_an_error_at_export(tmp_path: Path) -> None:
    run = trainer(Quantization())
    run.fit()
    artifact = Artifact({"fc1.weight": torch.rand(300, 64)})
    with pytest.raises(MakeweightError, match=r"fc1.weight is not on its grid of 8 bits"):
        run.plugins.by_name["qat"].on_export(run, artifact)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("weights", "fc1", 0), 9, "'fc1.weight' is damaged: expected int8"),
        (("weights", "fc1", 1), 3, "'fc1.weight' is damaged: expected int8"),
        (("weights", "fc1", 0), 2, "is damaged: it has integers of more than 2 bits"),
        (("activations", 0, 2), -1.0, "the scale of activations"),
        (("activations", 0, 2), float("nan"), "its metadata of plugins is invalid"),  # not JSON
        (("activations", 0, 3), 256, "a quantizer of activations is damaged"),
        (("activations", 0, 4), 20, "a quantizer of activations is damaged"),
        (("activations", 0, 0), "nowhere", "no module 'nowhere'"),
        (("activations", 0, 1), "x); import os; (", "has no tensor"),
    ],
)
def test_a_damaged_record_is_refused(path: tuple[Any, ...], value: Any, message: str, tmp_path: Path) -> None:
    run = trainer(Quantization(), epochs=1)
    run.fit()
    run.export(tmp_path / "x.safetensors")
    artifact = read(tmp_path / "x.safetensors")
    record: Any = json.loads(json.dumps(artifact.metadata["qat"]))
    inside = record
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    write(Artifact(dict(artifact.tensors), {"qat": record}), tmp_path / "y.safetensors")
    with pytest.raises(MakeweightError, match=message):
        load(tmp_path / "y.safetensors", run.fresh_model())


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, 1e-38])
def test_a_scale_of_activations_must_be_a_number_above_0(scale: float) -> None:
    with pytest.raises(MakeweightError, match="the scale of activations 'x'"):
        read_activations([["", "x", scale, 0, 8]])


def test_damaged_scales_of_a_file_are_refused(tmp_path: Path) -> None:
    run = trainer(Quantization(activations=0), epochs=1)
    run.fit()
    run.export(tmp_path / "x.safetensors")
    artifact = read(tmp_path / "x.safetensors")
    for scale in (torch.zeros(300), torch.full((300,), torch.nan), torch.ones(299), torch.ones(300).double()):
        tensors = dict(artifact.tensors) | {"fc1.weight_scale": scale}
        write(Artifact(tensors, artifact.metadata), tmp_path / "y.safetensors")
        with pytest.raises(MakeweightError, match=r"scales of 'fc1.weight'"):
            load_tensors(tmp_path / "y.safetensors")


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    def run(out: Path, resume: bool = False) -> Trainer:
        made = trainer(Quantization(ranges="percentile", weights=4, begin=1), model=residual(), epochs=3, out=out,
                       resume=resume, checkpoint_every=1)  # fmt: skip
        made.fit()
        return made

    whole = run(tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    for path in newest[1:]:  # the last step's; the one before it is in the middle of an epoch
        path.rename(tmp_path / path.name)
    again = run(tmp_path / "run", resume=True)
    for one, other in ((whole.model, again.model), (whole.auxiliary, again.auxiliary)):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_quantized_convolutions_of_every_kind_train() -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(1, 4, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU6(), nn.Flatten(),
        nn.LazyLinear(10),
    )  # fmt: skip
    model(data()[0][:2])
    run = trainer(Quantization(weights=4), model=model)
    run.fit()
    plugin: Any = run.plugins.by_name["qat"]
    assert {name: len(scale) for name, scale in plugin.scales(run).items()} == {"0": 4, "2": 4, "5": 10}
