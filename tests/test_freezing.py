"""Frozen modules: no gradient, fixed batch norm statistics, in every stage, plugin and process, and exact at resume."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from makeweight import LoopOptions, Run, Trainer, UsageError, load_tensors
from makeweight.models.freezing import described, freeze, matching

from .helpers import MNIST, assert_same_bits, assert_same_run, here, run_stages, summary, two_processes
from .helpers_structure import net, run_of, strangers

CIFAR = MNIST.parent.parent / "cifar10.tar.gz"
needs_cifar = pytest.mark.skipif(not CIFAR.exists(), reason="MAKEWEIGHT_DATA names no folder that holds cifar10.tar.gz")
HALVES = {"a": ("airplane", "automobile", "bird", "cat", "deer"), "b": ("dog", "frog", "horse", "ship", "truck")}
COUNTS = {"a": {"train": 1000, "test": 20}, "b": {"train": 40, "test": 200}}
"""images per class of each half and split"""
NET = """
from torch import nn

def block(inputs, outputs):
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))

def net(num_classes):
    blocks = [block(3, 32), block(32, 64), block(64, 128)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes))
"""


def small_net(outputs: int = 3) -> nn.Sequential:
    """Two convolutions with batch norm and dropout, and a classifier."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs),
    )  # fmt: skip


def data(examples: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(examples, 1, 8, 8, generator=generator), torch.arange(examples) % 3


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# Which modules.


def test_globs_match_modules_by_name_and_the_outermost_ones_are_named() -> None:
    model = small_net()
    assert list(matching(model, ["0", "0.*", "1.1"])) == ["0", "1.1"]
    assert list(matching(model, ["*"])) == ["0", "1", "2", "3", "4"]
    with pytest.raises(UsageError, match=r"freeze conv: no module matches: choose from 0, 0\.0, 0\.1"):
        matching(model, ["0", "conv"])
    assert described(model, ["0"]) == "frozen: 0, 48 of 387 parameters"  # 36 + 4 + 8; the others have 312 and 27
    with pytest.raises(UsageError, match="freeze 0,1,4: all parameters are frozen"):
        described(model, ["0", "1", "4"])


def test_a_tied_weight_is_counted_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    model[1].weight = model[0].weight
    assert described(model, ["0"]) == "frozen: 0, 16 of 24 parameters"


def test_freezing_sets_modes_also_of_a_model_that_is_in_eval_as_a_whole() -> None:
    model = small_net().eval()
    freeze(model, ["1"])
    modes = {name: module.training for name, module in model.named_modules()}
    assert {name for name, training in modes.items() if not training} == {
        name for name in modes if name == "1" or name.startswith("1.")
    }
    assert [each.requires_grad for each in model[1].parameters()] == [False] * 4
    assert all(each.requires_grad for each in [*model[0].parameters(), *model[4].parameters()])


@pytest.mark.parametrize("given", ["0,1.1", " 0 , 1.1,", ["0", "1.1"]])
def test_a_list_and_text_with_commas_mean_the_same(given: Any) -> None:
    assert LoopOptions(freeze=given).frozen == ["0", "1.1"]
    assert LoopOptions().frozen == LoopOptions(freeze="").frozen == []


# What training changes.


def test_frozen_parameters_and_statistics_stay_bit_for_bit_and_the_rest_is_trained() -> None:
    model = small_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Trainer(model, data(), epochs=2, batch_size=16, lr=0.1, weight_decay=0.1, freeze="0,1.1").fit()
    expected = {"1.0.weight", "1.0.bias", "4.weight", "4.bias"}
    assert changed(before, model.state_dict()) == expected
    assert [name for name, each in model.named_parameters() if each.grad is None] == [
        "0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.1.weight", "1.1.bias",
    ]  # fmt: skip


def test_a_frozen_dropout_drops_nothing() -> None:
    outputs: dict[str, Tensor] = {}

    class Kept(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            outputs["x"] = x.detach()
            return x

    for globs, zeros in (("0", False), (None, True)):
        model = nn.Sequential(nn.Sequential(nn.Dropout(0.5)), Kept(), nn.Linear(4, 3))
        Trainer(model, (torch.ones(8, 4), torch.arange(8) % 3), epochs=1, batch_size=8, freeze=globs).fit()
        assert bool((outputs["x"] == 0).any()) == zeros


def test_training_without_frozen_modules_equals_training_them_by_hand() -> None:
    """The gradient of the rest is the same as torch's with requires_grad False and eval, step by step."""
    model, by_hand = small_net(), small_net()
    x, y = data(16)
    for each in (model, by_hand):
        each.get_submodule("1.3").p = 0.0  # type: ignore[assignment]
    Trainer(model, (x, y), epochs=1, batch_size=16, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant",
            freeze="0").fit()  # fmt: skip
    by_hand[0].requires_grad_(False).eval()
    loss = nn.functional.cross_entropy(by_hand(x), y)
    loss.backward()
    for name, weight in by_hand.named_parameters():
        expected = weight if weight.grad is None else weight - 0.1 * weight.grad
        torch.testing.assert_close(model.get_parameter(name), expected)
    torch.testing.assert_close(model.get_buffer("1.1.running_mean"), by_hand.get_buffer("1.1.running_mean"))


def test_a_stage_freezes_and_a_later_one_trains_everything() -> None:
    states: list[dict[str, Tensor]] = []

    def look(trainer: Trainer) -> None:
        states.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})

    common: Any = {"epochs": 1, "batch_size": 32, "lr": 0.1}
    stages: list[tuple[LoopOptions, dict[str, Any]]] = [
        (LoopOptions(**common, freeze="0,1"), {}),
        (LoopOptions(**common), {}),
        (LoopOptions(**common, freeze=["4"]), {}),
    ]
    run = run_stages(small_net(), data(), *stages, watch=look)
    heads = {"4.weight", "4.bias"}
    assert changed(states[0], states[1]) == heads
    body = {name for name in states[0] if name.startswith(("0.", "1."))}
    assert changed(states[2], states[3]) == heads | body
    assert changed(states[4], run.model.state_dict()) == body


def test_what_a_user_froze_stays_frozen_too() -> None:
    model = small_net()
    model[0].requires_grad_(False).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Trainer(model, data(), epochs=1, batch_size=16, lr=0.1, freeze="1").fit()
    assert changed(before, model.state_dict()) == {"4.weight", "4.bias"}


# With everything else.


WORDS = ["--model", "lenet5", "--image-size", "28", "--batch-size", "646", "--freeze", "conv*"]


def test_a_dry_run_says_what_is_frozen_and_errors_come_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = [{"epochs": 1}, {"epochs": 1, "freeze": None}, {"epochs": 1, "freeze": ["fc1", "conv2"]}]
    Path("r.yaml").write_text(json.dumps({"stages": stages}))
    assert here(*WORDS, "--recipe", "r.yaml", "--dry-run") == 0
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if line.startswith(("stage", "frozen"))]
    conv1, conv2 = 20 * 25 + 20, 50 * 20 * 25 + 50
    assert [line.partition(",")[0] for line in lines] == [
        "stage 1: 1 epochs", "frozen: conv1", "stage 2: 1 epochs", "stage 3: 1 epochs", "frozen: conv2",
    ]  # fmt: skip
    assert f"conv1, conv2, {conv1 + conv2:,} of 431,080 parameters" in lines[1]
    for words, said in (
        (["--freeze", "conv3"], "freeze conv3: no module matches: did you mean 'conv2'?"),
        (["--freeze", "conv*,fc*"], "freeze conv*,fc*: all parameters are frozen"),
        (
            ["--recipe", "r.yaml", "--stages.2.freeze", "nope"],
            "freeze nope: no module matches: choose from conv1, conv2",
        ),
    ):
        assert here(*WORDS, *words, "--out", "no") == 2
        shown = capsys.readouterr().err
        assert said in shown
        assert shown.count("\n") == 1
    assert not Path("no").exists()


@pytest.mark.slow  # several runs
@pytest.mark.parametrize("plugins", ["", "prune", "cluster,huffman", "qat", "prune,kd,qat,huffman"])
def test_every_plugin_keeps_its_promise_with_frozen_layers_and_resumes_to_the_same_bits(
    plugins: str, tmp_path: Path
) -> None:
    options = {"prune": ["--prune.sparsity", "0.5"], "kd": ["--kd.teacher", "initial"]}
    more = [word for name in plugins.split(",") for word in options.get(name, [])]
    words = [*WORDS, "--plugins", plugins, *more, "--checkpoint-every", "1", "--keep-checkpoints", "9", "--epochs", "1"]
    words += ["--seed", "0"]
    assert here(*words, "--out", tmp_path / "run") == 0
    from makeweight.testing import break_off

    broken = break_off(tmp_path / "run", tmp_path / "broken")
    assert here(*words, "--out", broken, "--resume") == 0
    assert_same_run(tmp_path / "run", broken)
    assert summary(tmp_path / "run")["export"]["accuracy"] == summary(tmp_path / "run")["accuracy"]
    tensors = load_tensors(tmp_path / "run" / "model.safetensors")
    if "prune" in plugins:  # compressed all the same
        assert (tensors["conv2.weight"] == 0).float().mean() >= 0.5
    if not plugins:
        from makeweight.commands.session import Session
        from makeweight.options import Options

        start = Session(Options(model="lenet5", image_size=28)).original().state_dict()
        assert changed(start, tensors) == {name for name in start if name.startswith("fc")}


@pytest.mark.slow  # two processes
def test_two_processes_train_with_frozen_layers_to_equal_weights(tmp_path: Path) -> None:
    words = ["-m", "makeweight", *WORDS, "--epochs", "1", "--plugins", "prune"]
    two_processes(tmp_path, *words, "--out", "two")
    assert here(*WORDS, "--epochs", "1", "--plugins", "prune", "--out", tmp_path / "one") == 0
    two, one = (load_tensors(tmp_path / each / "model.safetensors") for each in ("two", "one"))
    assert_same_bits({"conv1.bias": two["conv1.bias"]}, {"conv1.bias": one["conv1.bias"]})
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from strangers(tmp_path_factory)


@pytest.mark.usefixtures("installed")
def test_layers_that_a_plugin_makes_of_a_frozen_one_are_frozen_and_names_are_those_at_the_start_of_a_stage(
    tmp_path: Path,
) -> None:
    """The names hold when a stage is resumed, whose checkpoint has a later structure."""
    halves = {"halves": {"layers": "fc1", "batches": 1}}

    def go(out: Path, resume: bool = False) -> Run:
        frozen = ({"freeze": "fc1"}, {"freeze": "fc1.0,norm"})
        run = run_of(halves, {}, model=net(), out=out, resume=resume, each=frozen, epochs=1, checkpoint_every=2,
                     keep_checkpoints=99)  # fmt: skip
        run.trainer.journal.console.quiet = True
        run.fit()
        return run

    whole = go(tmp_path / "run")
    steps = {
        path.name: {name[1:]: tensor for name, tensor in load_file(path / "model.safetensors").items()}
        for path in (tmp_path / "run" / "checkpoints").iterdir()
    }
    names = sorted(steps)  # four steps of each stage
    assert names[0] == "step-000000000"
    assert "fc1.0.weight" in steps[names[0]]
    first = [name for name in names if "stage" not in name]
    second = [name for name in names if "stage-001" in name]
    trained_in = [changed(steps[stage[0]], steps[stage[-1]]) for stage in (first, second)]
    rest = {"fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"}
    statistics = {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert trained_in == [rest | statistics, rest | {"fc1.1.weight", "fc1.1.bias"}]
    for last in reversed(names[:-1]):
        for each in sorted((tmp_path / "run" / "checkpoints").iterdir()):
            if each.name > last:
                shutil.rmtree(each)
        assert_same_bits(go(tmp_path / "run", resume=True).model.state_dict(), whole.model.state_dict())


# Fine-tuning.


def write_halves(folder: Path) -> None:
    """The first images of each class of CIFAR-10, five classes in each of two image folders."""
    home = {name: half for half, names in HALVES.items() for name in names}
    written: Counter[tuple[str, str]] = Counter()
    with tarfile.open(CIFAR) as archive:
        for member in archive:
            split, _, rest = member.name.partition("/")
            name, _, file = rest.partition("/")
            if member.isfile() and name in home and written[split, name] < COUNTS[home[name]][split]:
                written[split, name] += 1
                path = folder / home[name] / split / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                path.write_bytes(content.read())


@needs_cifar
@pytest.mark.slow  # trains on 5,000 images
def test_one_epoch_from_weights_of_other_classes_reaches_what_three_from_nothing_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_halves(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(NET)
    common = ["--model", "my_net:net", "--image-size", "16", "--validation", "0", "--lr", "0.05"]
    first = ["--data", "imagefolder:a", "--epochs", "8", "--batch-size", "50", "--augment", "crop-flip"]
    assert here(*common, *first, "--out", "first") == 0
    wrapped = {f"module.{name}": tensor for name, tensor in load_tensors("first/model.safetensors").items()}
    torch.save({"epoch": 8, "state_dict": wrapped}, "first.pth")
    other = [*common, "--data", "imagefolder:b", "--batch-size", "4"]
    assert here(*other, "--epochs", "3", "--out", "nothing") == 0
    capsys.readouterr()
    assert here(*other, "--epochs", "1", "--weights", "first.pth", "--freeze", "0,1", "--out", "tuned") == 0
    said = "weights first.pth: read from its entry 'state_dict'; without the prefix 'module.' of its names"
    assert said in capsys.readouterr().out
    tuned, nothing = (summary(tmp_path / name)["accuracy"] for name in ("tuned", "nothing"))
    assert tuned > nothing + 0.05
    before, after = (load_tensors(f"{name}/model.safetensors") for name in ("first", "tuned"))
    assert changed(before, after) == {name for name in before if name.startswith(("2.", "5."))}
