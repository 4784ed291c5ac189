"""Structure that strangers' plugins decide on: with every other technique, from run to run, and at a stage's end."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from makeweight import LoopOptions, MakeweightError, Run, Stage, Trainer, hookimpl, load, load_tensors
from makeweight.discovery import load_class
from makeweight.files.artifact import read
from makeweight.plugin import Structure, parameter, replace
from makeweight.training.network import left_by

from .helpers import summary
from .helpers import trainer as process
from .helpers_structure import eval_data, logits, made, net, run_of, strangers, train_data, trained


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from strangers(tmp_path_factory)


OPTIONS: dict[str, dict[str, Any]] = {
    "halves": {"batches": 2},
    "kd": {},
    "qat": {"weights": 4},
    "prune": {"sparsity": 0.7, "end": 1.0, "every": 1},
    "cluster": {"values": 8, "begin": 1.0},
    "drop": {"pairs": {"fc2": "fc3"}},
    "huffman": {},
}


def weights(run: Trainer, tensors: dict[str, Tensor]) -> list[Tensor]:
    return [tensors[f"{layer}.weight"] for layer in run.layers()]


def layers_are_halved(run: Trainer, tensors: dict[str, Tensor], path: Path) -> bool:
    (record,) = [each for each in read(path).records if each.plugin == "halves"]
    return all(
        tensors[f"{name}.0.weight"].shape == (rank, inputs) and tensors[f"{name}.1.weight"].shape == (outputs, rank)
        and rank * (inputs + outputs) < inputs * outputs and bias == (f"{name}.1.bias" in tensors)
        for name, (inputs, rank, outputs, bias) in record.record["layers"].items()
    )  # fmt: skip


def zeros_are_there(run: Trainer, tensors: dict[str, Tensor], path: Path) -> bool:
    return all(int((each == 0).sum()) >= round(0.7 * each.numel()) for each in weights(run, tensors))


def the_teacher_was_heard(run: Trainer, tensors: dict[str, Tensor], path: Path) -> bool:
    terms = {name for name in run.losses if name.startswith("kd")}
    return bool(terms) and all(run.metrics[f"train_{term}"] > 0 for term in terms)


def weights_are_on_a_grid(run: Trainer, tensors: dict[str, Tensor], path: Path) -> bool:
    """Each channel's largest magnitude is 7 steps, and the record names every layer with its bits."""
    for weight in weights(run, tensors):
        steps = weight * 7 / weight.abs().amax(1, keepdim=True).clamp_min(1e-20)
        if (steps - steps.round()).abs().max() > 1e-4:
            return False
    return {name: bits for name, (bits, *_) in read(path).metadata["qat"]["weights"].items()} == dict.fromkeys(
        run.layers(), 4
    )


def values_are_few(run: Trainer, tensors: dict[str, Tensor], path: Path) -> bool:
    return all(len(each[each != 0].unique()) <= 8 for each in weights(run, tensors))


def neurons_are_gone(run: Trainer, tensors: dict[str, Tensor], path: Path) -> bool:
    kept = len(tensors["fc2.weight"])
    return kept < 24 and tensors["fc3.weight"].shape == (10, kept)


def the_file_is_smaller(run: Trainer, tensors: dict[str, Tensor], path: Path) -> bool:
    return path.stat().st_size < len(save(tensors)) and "huffman" in read(path).metadata


PROMISES: dict[str, Callable[[Trainer, dict[str, Tensor], Path], bool]] = {
    "halves": layers_are_halved, "kd": the_teacher_was_heard, "qat": weights_are_on_a_grid, "prune": zeros_are_there,
    "cluster": values_are_few, "drop": neurons_are_gone, "huffman": the_file_is_smaller,
}  # fmt: skip


def assert_promises(run: Trainer, folder: Path, names: tuple[str, ...]) -> None:
    """The export keeps every plugin's promise, and is read back, by the original network, as it was trained."""
    path = folder / "model.safetensors"
    run.export(path)
    tensors = load_tensors(path)
    for name in names:
        assert PROMISES[name](run, tensors, path), f"{','.join(names)} breaks the promise of {name}"
    restored = load(path, net(seed=1))
    assert torch.equal(logits(restored), logits(run.model)), f"{','.join(names)} does not read back equal"


ORDERS = [
    *permutations(["halves", "prune"]),
    *permutations(["halves", "drop", "prune"]),
    ("halves", "prune", "huffman"),
    ("cluster", "halves", "huffman"),
    ("drop", "cluster", "prune"),
    *permutations(["halves", "kd", "qat", "prune"]),
    ("halves", "kd", "qat", "prune", "huffman"),
    ("prune", "qat", "kd", "halves", "huffman"),
    ("kd", "drop", "prune", "halves", "qat", "huffman"),
]  # fmt: skip


@pytest.mark.parametrize("names", ORDERS, ids=",".join)
def test_structure_goes_with_every_technique_in_every_order_of_the_list(names: tuple[str, ...], tmp_path: Path) -> None:
    options = OPTIONS | ({"halves": {"batches": 2, "layers": "fc1"}} if "drop" in names else {})
    run = trained({name: options[name] for name in names})
    assert_promises(run, tmp_path, names)


AT_END: dict[str, dict[str, Any]] = {
    "halves": {"batches": 2, "layers": "fc1", "at": "end"},
    "drop": {"pairs": {"fc2": "fc3"}, "at": "end", "fraction": 0.25},
}
OTHERS = {"kd": OPTIONS["kd"], "prune": OPTIONS["prune"], "qat": OPTIONS["qat"], "cluster": OPTIONS["cluster"]}


@pytest.mark.parametrize("deciding", AT_END)
@pytest.mark.parametrize("others", [(), *((name,) for name in OTHERS), ("prune", "kd", "qat"), ("prune", "cluster")],
                         ids=lambda names: ",".join(names) or "alone")  # fmt: skip
def test_a_run_of_one_stage_that_decides_at_its_end_exports_the_smaller_network(
    deciding: str, others: tuple[str, ...], tmp_path: Path
) -> None:
    """With the promises of all that is on, and the library's trainer changed the very model that it was given."""
    elsewhere = {"prune": {"layers": "fc3"}, "cluster": {"layers": "fc3"}} if deciding == "halves" else {}
    options = {name: OTHERS[name] | elsewhere.get(name, {}) for name in others}
    model = net()
    run = trained({**options, deciding: AT_END[deciding]}, model)
    assert run.model is model
    assert run.ended
    path = tmp_path / "model.safetensors"
    run.export(path)
    tensors = load_tensors(path)
    assert PROMISES[deciding](run, tensors, path)
    assert torch.equal(logits(load(path, net(seed=1))), logits(model))
    if "prune" in others:
        zeros = [int((tensors[f"{name}.weight"] == 0).sum()) / tensors[f"{name}.weight"].numel()
                 for name in run.layers(elsewhere.get("prune", {}).get("layers", "*"))]  # fmt: skip
        assert all(each >= 0.7 - 1e-3 for each in zeros)
    if "cluster" in others:
        assert len(tensors["fc3.weight"][tensors["fc3.weight"] != 0].unique()) <= 8
    if "qat" in others:
        assert set(read(path).metadata["qat"]["weights"]) == set(run.layers())
    if "kd" in others:
        assert run.metrics["train_kd"] > 0


def test_at_a_stages_end_the_metrics_are_those_of_the_smaller_network() -> None:
    run = trained({"drop": AT_END["drop"]})
    assert run.metrics["accuracy"] == run.evaluate()["accuracy"]
    assert run.metrics["loss"] == run.evaluate()["loss"]


@pytest.mark.parametrize("name", ["prune", "cluster"])
def test_a_promise_that_the_new_structure_breaks_is_an_error_in_one_line_and_no_file(name: str, tmp_path: Path) -> None:
    """Dense factors of a sparse matrix, made when training is over."""
    run = trained({name: OTHERS[name], "halves": AT_END["halves"]})
    with pytest.raises(MakeweightError, match=r"fc1\.[01]") as raised:
        run.export(tmp_path / "model.safetensors")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 48), nn.Linear(48, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())

def build():
    return Net()
"""


def test_three_runs_each_from_the_export_of_the_one_before_are_all_read_by_the_original_network(
    tmp_path: Path,
) -> None:
    (tmp_path / "my_model.py").write_text(MODEL)
    words = ["--model", "my_model:build", "--epochs", 1, "--batch-size", 256]
    plugins = ["halves,prune,huffman", "drop", "prune,halves"]
    options: list[list[object]] = [
        ["--halves.layers", "fc1", "--halves.batches", 1, "--prune.sparsity", 0.5, "--prune.every", 1],
        ["--drop.pairs", '{"fc2": "fc3"}'],
        ["--halves.layers", "fc2", "--halves.energy", 0.5, "--prune.sparsity", 0.5, "--prune.every", 1],
    ]
    for number, (names, more) in enumerate(zip(plugins, options, strict=True)):
        from_last = ["--weights", f"run{number - 1}/model.safetensors"] if number else []
        process(tmp_path, *words, "--plugins", names, *more, *from_last, "--out", f"run{number}")
    decided = [["halves"], ["halves", "drop"], ["halves", "drop", "halves"]]
    sizes = []
    for number, plugins_then in enumerate(decided):
        path = tmp_path / f"run{number}" / "model.safetensors"
        assert [each.plugin for each in read(path).records] == plugins_then
        space: dict[str, Any] = {}
        exec(MODEL, space)
        restored = load(path, space["build"]())
        x, y = held_out()
        with torch.no_grad():
            right = (restored.eval()(x).argmax(1) == y).double().mean()
        found = summary(tmp_path / f"run{number}")
        assert found["export"]["accuracy"] == found["accuracy"] == pytest.approx(float(right), abs=1e-9)
        assert found["export"]["dense_bytes"] == summary(tmp_path / "run0")["export"]["dense_bytes"]
        sizes.append(sum(each.numel() for each in restored.parameters()))
        assert found["parameters"] == sizes[-1]
    assert sizes[0] > sizes[1] > sizes[2]


def held_out() -> tuple[Tensor, Tensor]:
    """The examples that a run on digits is tested on."""
    from makeweight.data.by_name import load as load_data

    data: Any = load_data("digits", None)
    columns = data.test.columns
    return columns[0], columns[1]


# What the core carries out.


class Scaled(nn.Module):
    """A network with a buffer outside its state dict, which its forward needs."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.register_buffer("scale", torch.full((1,), 3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x) * self.scale
        return output


def test_buffers_outside_the_state_dict_begin_as_in_the_original_however_many_runs_lie_between(tmp_path: Path) -> None:
    options = {"halves": {"layers": "net.fc1", "batches": 1}}
    first = trained(options, Scaled(), epochs=1)
    first.export(tmp_path / "first.safetensors")
    between = load(tmp_path / "first.safetensors", Scaled())
    assert torch.equal(logits(between), logits(first.model))
    second = trained({"halves": {"layers": "net.fc2", "batches": 1}}, between, epochs=1)
    second.export(tmp_path / "second.safetensors")
    assert torch.equal(logits(load(tmp_path / "second.safetensors", Scaled())), logits(second.model))
    assert torch.equal(logits(load(tmp_path / "second.safetensors", second.fresh_model())), logits(second.model))


def test_fresh_model_is_the_network_from_before_all_records(tmp_path: Path) -> None:
    first = trained({"halves": {"layers": "fc1", "batches": 1}}, epochs=1)
    assert first.fresh_model().state_dict().keys() == net().state_dict().keys()
    first.export(tmp_path / "first.safetensors")
    second = trained({"drop": OPTIONS["drop"]}, load(tmp_path / "first.safetensors", net()), epochs=1)
    assert second.fresh_model().state_dict().keys() == net().state_dict().keys()


def test_initial_model_is_the_network_from_before_the_change_with_the_weights_the_stage_began_with() -> None:
    seen: list[Tensor] = []

    @dataclass(eq=False)
    class Look:
        @hookimpl
        def on_init(self, trainer: Trainer) -> None:
            if trainer.stage == 1:
                seen.append(logits(trainer.initial_model()))

    def last(run: Run) -> Tensor:
        return logits(run.model)

    alone = run_of({})
    alone.fit()
    run = run_of({}, {"halves": {"batches": 1}, "drop": {}})
    for stage in run.stages:
        stage.plugins["look"] = Look()
    run.fit()
    assert set(run.trainer.layers()) > {"fc1.0", "fc1.1"}
    assert torch.equal(seen[0], last(alone))


def test_new_modules_keep_the_mode_and_the_frozenness_of_what_they_replace() -> None:
    model = net().train()
    model.fc1.eval().requires_grad_(False)
    model.fc2.weight.requires_grad_(False)
    replace(model, "fc1", nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 32)))
    replace(model, "fc2", nn.Linear(32, 24))
    replace(model, "fc3", nn.Sequential(nn.Dropout(), nn.Linear(24, 10)))
    assert [each.training for each in model.fc1.modules()] == [False] * 3
    assert not any(each.requires_grad for each in model.fc1.parameters())
    assert all(each.requires_grad for each in model.fc2.parameters())
    assert all(each.training for each in model.fc3.modules())
    assert all(each.requires_grad for each in model.fc3.parameters())
    with pytest.raises(MakeweightError, match="no module 'fc9'"):
        replace(model, "fc9", nn.Linear(1, 1))
    with pytest.raises(MakeweightError, match="single layer"):
        replace(nn.Linear(2, 2), "", nn.Linear(1, 1))


@dataclass(eq=False)
class Turn:
    """Put the hidden neurons before fc3 into another order, drop some, and say what was kept."""

    kept: tuple[int, ...] = ()

    @hookimpl
    def on_structure(self, trainer: Trainer) -> Structure | None:
        if trainer.ending:
            return None
        index, state = torch.tensor(self.kept), trainer.model.state_dict()
        tensors = {"fc2.weight": state["fc2.weight"][index], "fc2.bias": state["fc2.bias"][index],
                   "fc3.weight": state["fc3.weight"][:, index]}  # fmt: skip
        kept = {"fc2.weight": {0: self.kept}, "fc2.bias": {0: self.kept}, "fc3.weight": {1: self.kept}}
        return Structure({"number": 1, "hidden": len(index)}, tensors, kept)

    @hookimpl
    def on_build(self, model: nn.Module, record: dict[str, Any]) -> None:
        replace(model, "fc2", nn.Linear(32, record["hidden"]))
        replace(model, "fc3", nn.Linear(record["hidden"], 10))


@dataclass(eq=False)
class Masked:
    """Holds some state by element and by channel, and a mask, over two stages."""

    first: bool = True
    state: dict[str, Any] = field(default_factory=dict)

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        weight = parameter(trainer.model, "fc2.weight")
        if self.state:
            self.carried = trainer.carried("fc2.weight", self.state["elements"])
            self.channels = trainer.carried("fc2.weight", self.state["channels"], axis=0)
            self.unknown = trainer.carried("fc9.weight", self.state["elements"])
        else:
            self.state = {"elements": weight.detach().clone(), "channels": weight.detach().sum(1)}
            trainer.masks.set(
                "masked", {"fc2.weight": weight > 0, "fc3.weight": parameter(trainer.model, "fc3.weight") > 0}
            )

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state)


@pytest.mark.parametrize("kept", [[tuple(range(4, 24))], [tuple(range(23, -1, -1))],
                                  [tuple(range(23, -1, -1)), (3, 1, 2)], [(5, 4, 3, 2), (3, 2, 1)]])  # fmt: skip
def test_masks_and_carried_state_follow_what_every_change_kept_once(
    kept: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two plugins in one stage may each change the same parameter; indices may come in any order."""
    stages = [Stage(LoopOptions(epochs=1, batch_size=128), {"masked": Masked()})]
    plugins: dict[str, Any] = {f"turn{number}": Turn(each) for number, each in enumerate(kept)}
    stages.append(Stage(LoopOptions(epochs=1, batch_size=128), {**plugins, "masked": Masked()}))
    run = Run(net(), train_data(), eval_data(), stages)
    before: dict[str, Tensor] = {}

    def leaving(trainer: Trainer) -> Any:
        start = left_by(trainer)
        before.update(start.masks["masked"], elements=start.states["masked"]["elements"])
        return start

    monkeypatch.setattr("makeweight.run.left_by", leaving)
    run.fit()
    whole = torch.arange(24)
    for each in kept:
        whole = whole[torch.tensor(each)]
    masks = run.trainer.masks.of("masked")
    assert torch.equal(masks["fc2.weight"], before["fc2.weight"][whole])
    assert torch.equal(masks["fc3.weight"], before["fc3.weight"][:, whole])
    masked = stages[1].plugins["masked"]
    assert torch.equal(masked.carried, before["elements"][whole])
    assert torch.equal(masked.channels, before["elements"].sum(1)[whole])
    assert masked.unknown is None
    assert bool((parameter(run.model, "fc2.weight")[~masks["fc2.weight"]] == 0).all())


def test_a_mask_that_cannot_follow_starts_from_the_zeros_of_the_new_weights() -> None:
    @dataclass(eq=False)
    class Silent(Turn):
        @hookimpl
        def on_structure(self, trainer: Trainer) -> Structure | None:
            found = Turn.on_structure(self, trainer)
            return None if found is None else Structure(found.record, found.tensors)

    options = LoopOptions(epochs=1, batch_size=128)
    stages = [Stage(options, {"masked": Masked()}), Stage(options, {"silent": Silent((3, 2, 1)), "masked": Masked()})]
    run = Run(net(), train_data(), eval_data(), stages)
    run.fit()
    mask = run.trainer.masks.of("masked")["fc2.weight"]
    assert mask.shape == (3, 32)
    assert torch.equal(mask, parameter(run.model, "fc2.weight") != 0)
    assert stages[1].plugins["masked"].carried is None


@pytest.mark.parametrize("order", list(permutations(["halves", "drop"])), ids=",".join)
@pytest.mark.parametrize("name", ["halves", "drop"])
def test_what_raises_is_laid_on_the_plugin_that_did_though_its_package_has_two(
    name: str, order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("broken")

    options = {"drop": OPTIONS["drop"], "halves": {"layers": "fc1"}}
    run = run_of({each: options[each] for each in order})
    module = sys.modules[load_class(name).__module__]
    monkeypatch.setattr(module, "input_moments" if name == "halves" else "largest_rows", broken)
    with pytest.raises(ValueError, match="broken") as raised:
        run.fit()
    assert raised.value.__notes__ == [f"in plugin {name!r}"]


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ({"number": 1}, "a dict: expected a Structure or None"),
        (Structure({"layers": {}}), "expected a table with a number"),
        (Structure({"number": True}), "expected a table with a number"),
        (Structure({"number": 1, "x": float("nan")}), "JSON"),
        (Structure({"number": 1, "x": torch.ones(1)}), "JSON"),
        (Structure({"number": 1, "x": "y" * (17 << 20)}), "expected at most"),
        (Structure({"number": 1, "hidden": 3}, {"fc2.weight": torch.ones(4, 32)}), "fc2.weight"),
        (Structure({"number": 1, "hidden": 3}, {"fc9.weight": torch.ones(4, 32)}), "fc9.weight"),
        (Structure({"number": 1, "hidden": -3}), "turn"),
    ],
    ids=["no Structure", "no number", "bool", "NaN", "a tensor", "17 MB", "shape", "name", "cannot be built"],
)
def test_a_decision_that_cannot_be_carried_out_is_an_error_in_one_line_that_names_the_plugin(
    decision: Any, said: str
) -> None:
    @dataclass(eq=False)
    class Decides(Turn):
        @hookimpl
        def on_structure(self, trainer: Trainer) -> Any:
            return decision

    run = Trainer(net(), train_data(), plugins={"turn": Decides()}, epochs=1)
    with pytest.raises(MakeweightError, match=said) as raised:
        run.fit()
    assert "'turn'" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_plugin_whose_on_build_does_not_build_from_the_record_alone_is_told_when_it_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def remembered(model: nn.Module, record: dict[str, Any]) -> Any:
        calls.append(1)
        return {name: [*sizes[:1], sizes[1] if len(calls) == 1 else 1, *sizes[2:]]
                for name, sizes in record["layers"].items()}  # fmt: skip

    run = Trainer(net(), train_data(), plugins=made({"halves": {"batches": 1}}), epochs=1)
    monkeypatch.setattr(sys.modules[load_class("halves").__module__], "checked", remembered)
    with pytest.raises(MakeweightError, match="do not rebuild the structure"):
        run.fit()


def test_hyperparameters_names_are_those_of_the_new_structure() -> None:
    @dataclass(eq=False)
    class Groups:
        @hookimpl
        def on_init(self, trainer: Trainer) -> None:
            trainer.hyperparameters(["fc1.*.weight"], weight_decay=0.0)

    run = Trainer(net(), train_data(), None, {"groups": Groups(), **made({"halves": {"layers": "fc1"}})}, epochs=1)
    run.fit()
    assert [len(group["params"]) for group in run.optimizer.param_groups] == [7, 2]


def test_export_size_is_that_of_the_file_with_its_records(tmp_path: Path) -> None:
    for plugins in ({"halves": {"batches": 1}, "prune": OPTIONS["prune"], "huffman": {}}, {"drop": AT_END["drop"]}, {}):
        run = trained(plugins, epochs=1)
        size = run.export_size()
        run.export(tmp_path / "model.safetensors")
        assert size == (tmp_path / "model.safetensors").stat().st_size


def test_the_librarys_trainer_resumes_on_a_fresh_original_and_changes_that_very_model(
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"checkpoint_every": 3, "keep_checkpoints": 100}
    plugins: dict[str, dict[str, Any]] = {
        "halves": {"layers": "fc1", "batches": 1}, "prune": OPTIONS["prune"], "drop": AT_END["drop"]
    }  # fmt: skip
    whole = trained(plugins, out=tmp_path / "run", **settings)
    for last in (None, "step-000000008-end", "step-000000008", "step-000000003"):
        for each in sorted((tmp_path / "run" / "checkpoints").iterdir()):
            if last is not None and each.name >= last:
                shutil.rmtree(each)
        model = net(seed=5)
        resumed = trained(plugins, model, out=tmp_path / "run", resume=True, **settings)
        assert resumed.model is model
        assert torch.equal(logits(model), logits(whole.model))
        assert resumed.metrics["accuracy"] == whole.metrics["accuracy"]


def test_on_check_sees_a_copy_of_the_model_unless_its_structure_may_still_be_decided_on() -> None:
    seen: list[tuple[str, bool]] = []

    @dataclass(eq=False)
    class Sees:
        name: str

        @hookimpl
        def on_check(self, model: nn.Module | None, batch: Any, task: Any) -> str:
            seen.append((self.name, model is not None))
            if model is not None:
                task.forward(model, batch)
                replace(model, "fc1", nn.Linear(1, 1))
            return f"{self.name} looked"

        @hookimpl
        def on_init(self, trainer: Trainer) -> None: ...

    run = run_of({}, {"halves": {"layers": "fc1"}}, {})
    for number, stage in enumerate(run.stages):
        stage.plugins = {f"a{number}": Sees(f"a{number}"), **stage.plugins, f"b{number}": Sees(f"b{number}")}
    lines = run.check()
    assert seen == [("a0", True), ("b0", True), ("a1", False), ("b1", False), ("a2", False), ("b2", False)]
    assert lines[0] == {"a0": "a0 looked", "b0": "b0 looked"}
    assert "fc1" in (lines[1]["halves"] or "")
    assert [name for name, _ in run.model.named_children()] == ["fc1", "norm", "fc2", "fc3"]
    run.fit()
