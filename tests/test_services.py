"""What plugins may ask of a trainer: samples, measurements, agreement, groups of parameters, masks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from makeweight import MakeweightError, Trainer, UsageError, hookimpl
from makeweight.data.by_name import load as load_data
from makeweight.plugin import agree, parameter
from makeweight.training import checkpoint

from .helpers import two_processes
from .helpers_structure import digits, eval_data, net, strangers, train_data, trained


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from strangers(tmp_path_factory)


def quiet(plugins: Any = (), model: nn.Module | None = None, data: Any = None, **settings: Any) -> Trainer:
    data = train_data() if data is None else data
    run = Trainer(model or net(), data, eval_data(), plugins, **{"epochs": 1, "batch_size": 128, **settings})
    run.journal.console.quiet = True
    return run


# Samples.


def test_samples_are_the_first_training_examples_as_micro_batches() -> None:
    run, (x, y) = quiet(batch_size=64, accumulate=2), train_data()
    batches = run.sample_batches(3)
    assert [len(labels) for _, labels in batches] == [32, 32, 32]
    assert torch.equal(torch.cat([images for images, _ in batches]), x[:96])
    assert torch.equal(torch.cat([labels for _, labels in batches]), y[:96])
    assert torch.equal(run.sample_batch()[0], x[:32])
    assert sum(len(labels) for _, labels in run.sample_batches(1000)) == len(y)


def test_samples_come_without_augmentation() -> None:
    augmented = load_data("digits", augment="crop-flip")
    plain = load_data("digits")
    (images, labels), *_ = quiet(data=augmented.train).sample_batches(1)
    (expected, classes), *_ = quiet(data=plain.train).sample_batches(1)
    assert torch.equal(images, expected)
    assert torch.equal(labels, classes)


def test_samples_of_a_folder_of_images_come_without_augmentation(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for number in range(12):
            folder = tmp_path / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(
                0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8
            )
            Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    model, found = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), []
    for augment in ("none", "crop-flip"):
        data = load_data(f"imagefolder:{tmp_path}", image_size=8, augment=augment, validation=0)
        run = Trainer(model, data.train, plugins=[], epochs=1, batch_size=4)
        found += [torch.cat([images for images, _ in run.sample_batches(2, each)]) for each in (False, True)]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])


def test_balanced_samples_hold_as_many_of_each_class_and_the_first_of_each() -> None:
    x, y = digits()
    order = y.argsort(stable=True)  # by class, as folders of images come
    run = quiet(data=(x[order], y[order]), batch_size=50)
    batches = run.sample_batches(4, balanced=True)
    for images, labels in batches:
        assert set(Counter(labels.tolist()).values()) == {5}
        assert images.shape == (50, 1, 8, 8)
    labels = torch.cat([labels for _, labels in batches])
    images = torch.cat([images for images, _ in batches])
    for label in range(10):
        assert torch.equal(images[labels == label], x[y == label][:20])
    unbalanced = torch.cat([labels for _, labels in run.sample_batches(4)])
    assert len(unbalanced.unique()) == 2


def test_balanced_samples_of_targets_that_are_no_classes_are_refused() -> None:
    run = quiet(model=nn.Linear(3, 2), data=(torch.randn(64, 3), torch.randn(64, 2)), batch_size=8)
    with pytest.raises(UsageError, match="one class for each example"):
        run.sample_batches(1, balanced=True)


def test_to_ask_for_samples_and_measurements_moves_no_random_number() -> None:
    @dataclass(eq=False)
    class Asks:
        @hookimpl
        def on_epoch_end(self, trainer: Trainer) -> None:
            trainer.sample_batches(2, balanced=True)
            trainer.evaluate(examples=30)
            trainer.export_size()
            trainer.agree([1])
            torch.rand(3, generator=trainer.generator("asks"))

    states = []
    for plugins in ([], [Asks()]):
        run = quiet(plugins, epochs=2, model=nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)))
        torch.manual_seed(0)
        with torch.no_grad():
            for each in run.model.parameters():
                each.normal_()
        run.fit()
        states.append(run.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# Measurements.


def test_evaluate_on_some_examples_is_the_same_for_the_whole_run_and_on_all_of_them_exact() -> None:
    run = quiet()
    run.check()  # chooses the loss, with a forward pass of its own
    seen: list[int] = []
    run.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    some = run.evaluate(examples=30)
    assert sum(seen) == 30
    assert (some["accuracy"] * 30) % 1 == pytest.approx(0, abs=1e-6)
    assert run.evaluate(examples=30) == some
    assert quiet().evaluate(examples=30) == some
    assert quiet(seed=1).evaluate(examples=30) != some
    assert run.evaluate(examples=200) == run.evaluate(examples=10**6) == run.evaluate()
    x, y = train_data()
    assert run.evaluate((x[:10], y[:10])) == run.evaluate((x[:10], y[:10]), examples=10)


def test_evaluate_gives_back_each_modules_own_mode() -> None:
    run = quiet()
    run.model.train()
    run.model.norm.eval()  # type: ignore[union-attr]
    run.evaluate(examples=10)
    assert [module.training for module in run.model.modules()] == [True, True, False, True, True]


def test_agree_gives_json_back() -> None:
    run = quiet()
    assert run.agree({"a": (1, 2.5, None), "b": "ü"}) == {"a": [1, 2.5, None], "b": "ü"}
    with pytest.raises(TypeError):
        run.agree(torch.ones(1))


@dataclass(eq=False)
class Strict:
    """Promises that nothing exported is negative, unless only the size is wanted."""

    trials: list[bool] = field(default_factory=list)

    @hookimpl
    def on_export(self, artifact: Any) -> None:
        self.trials.append(artifact.trial)
        if not artifact.trial and any(bool((each < 0).any()) for each in artifact.tensors.values()):
            raise MakeweightError("negative")


def test_export_size_is_that_of_the_file_written_right_after_and_checks_no_promise(tmp_path: Path) -> None:
    strict = Strict()
    run = quiet([strict])
    run.fit()
    size = run.export_size()
    assert strict.trials == [True]
    with pytest.raises(MakeweightError, match="negative"):
        run.export(tmp_path / "model.safetensors")
    for plugins in ({}, {"prune": {"every": 1}, "huffman": {}}, {"qat": {"weights": 4}}, {"kd": {"exits": "all"}}):
        run = trained(plugins, epochs=1)
        size = run.export_size()
        assert run.export_size() == size
        run.export(tmp_path / "model.safetensors")
        assert (tmp_path / "model.safetensors").stat().st_size == size


# Groups of parameters.


@dataclass(eq=False)
class Groups:
    """Parameters that no loss reads: what moves them is weight decay alone."""

    decays: dict[str, dict[str, Any]] = field(default_factory=dict)

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        for name in ("usual", "free", "slow", "late"):
            module = trainer.add_auxiliary(name, nn.Linear(3, 2))
            with torch.no_grad():
                for each in module.parameters():
                    each.fill_(1.0)
        trainer.idle(lambda: trainer.auxiliary.parameters())
        for glob, settings in self.decays.items():
            trainer.hyperparameters([glob], **settings)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_hyperparameters_give_parameters_a_decay_and_a_rate_of_their_own(optimizer: str) -> None:
    """Without a gradient a step multiplies a parameter by 1 − lr · lr_scale · weight_decay."""
    own: dict[str, dict[str, Any]] = {
        "auxiliary.free.*": {"weight_decay": 0.0},
        "auxiliary.slow.*": {"lr_scale": 0.5},
        "auxiliary.late.weight": {"weight_decay": 0.2, "lr_scale": 2.0},
        "fc1.*": {"weight_decay": 0.0},
    }
    groups = Groups(own)
    run = quiet([groups], optimizer=optimizer, momentum=0.0, schedule="constant", lr=0.1, weight_decay=0.5, epochs=2)
    run.fit()
    steps = run.step
    assert steps == 8
    expected = {"usual": (1 - 0.1 * 0.5) ** steps, "free": 1.0, "slow": (1 - 0.05 * 0.5) ** steps,
                "late": (1 - 0.2 * 0.2) ** steps}  # fmt: skip
    for name, value in expected.items():
        assert run.auxiliary.get_parameter(f"{name}.weight").tolist() == [[pytest.approx(value, rel=1e-5)] * 3] * 2
    assert run.auxiliary.get_parameter("late.bias").tolist() == [pytest.approx(expected["usual"], rel=1e-5)] * 2
    assert bool((run.auxiliary.get_parameter("free.weight") == 1).all())
    sizes = sorted(len(group["params"]) for group in run.optimizer.param_groups)
    assert sum(sizes) == len(list(run.model.parameters())) + 8


def test_the_last_of_several_hyperparameters_holds_and_a_name_that_matches_nothing_is_refused() -> None:
    groups = Groups({"auxiliary.free.*": {"weight_decay": 0.5}, "auxiliary.*.weight": {"weight_decay": 0.0}})
    run = quiet([groups], momentum=0.0, schedule="constant", lr=0.1)
    run.fit()
    assert bool((run.auxiliary.get_parameter("free.weight") == 1).all())
    assert bool((run.auxiliary.get_parameter("free.bias") < 1).all())
    with pytest.raises(UsageError, match=r"no parameter matches 'fc9\.\*'"):
        quiet([Groups({"fc9.*": {}})]).fit()


def test_a_frozen_parameter_is_in_no_group_and_its_decay_in_a_frozen_layer_is_none() -> None:
    model = net()
    model.fc1.requires_grad_(False)
    before = model.fc1.weight.detach().clone()
    run = quiet([Groups({"fc1.*": {"weight_decay": 0.9}})], model, weight_decay=0.5)
    run.fit()
    assert torch.equal(model.fc1.weight, before)


# Masks.


@dataclass(eq=False)
class Owner:
    """Masks a parameter by a pattern when a stage begins anew."""

    name: str
    keeps: Callable[[Tensor], Tensor]
    seen: list[int] = field(default_factory=list)

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        if not trainer.resumed:
            weight = parameter(trainer.model, "fc1.weight")
            trainer.masks.set(self.name, {"fc1.weight": self.keeps(torch.arange(weight.numel()).view_as(weight))})

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer) -> Any:
        self.seen.append(int((parameter(trainer.model, "fc1.weight") == 0).sum()))
        return (yield)


def halves_and_thirds() -> dict[str, Any]:
    return {"even": Owner("even", lambda index: index % 2 == 0), "third": Owner("third", lambda index: index % 3 == 0)}


def test_masks_of_two_owners_multiply_hold_after_every_step_and_are_exported_as_positive_zeros(tmp_path: Path) -> None:
    plugins = halves_and_thirds()
    run = quiet(plugins, out=tmp_path / "run", epochs=2, lr=0.1)
    run.fit()
    index = torch.arange(64 * 32).view(32, 64)
    kept = index % 6 == 0
    assert torch.equal(run.masks.combined()["fc1.weight"], kept)
    weight = parameter(run.model, "fc1.weight").detach()
    assert torch.equal(weight != 0, kept)
    assert plugins["even"].seen == [int((~kept).sum())] * 8
    saved = checkpoint.newest(tmp_path / "run" / "checkpoints", pytest.fail)
    assert saved is not None
    assert torch.equal(saved["masks"]["even"]["fc1.weight"], index % 2 == 0)
    assert torch.equal(saved["masks"]["third"]["fc1.weight"], index % 3 == 0)
    resumed = quiet(halves_and_thirds(), out=tmp_path / "run", resume=True, epochs=3, lr=0.1)
    resumed.fit()
    assert torch.equal(resumed.masks.combined()["fc1.weight"], kept)
    assert torch.equal(parameter(resumed.model, "fc1.weight") != 0, kept)
    artifact = resumed.export(tmp_path / "model.safetensors")
    assert artifact is not None
    assert not bool(torch.signbit(artifact.tensors["fc1.weight"][~kept]).any())
    assert torch.equal(artifact.tensors["fc1.weight"][kept], parameter(resumed.model, "fc1.weight").detach()[kept])


def test_a_plugin_replaces_its_own_masks_and_leaves_those_of_others() -> None:
    run = quiet()
    run.set_up()
    ones = torch.ones(32, 64, dtype=torch.bool)
    index = torch.arange(64 * 32).view(32, 64)
    run.masks.set("a", {"fc1.weight": index % 2 == 0})
    run.masks.set("b", {"fc1.weight": index % 3 == 0, "fc3.bias": torch.arange(10) > 4})
    assert torch.equal(run.model.get_parameter("fc3.bias") != 0, torch.arange(10) > 4)
    run.masks.set("b", {"fc1.weight": ones})
    assert torch.equal(run.masks.combined()["fc1.weight"], index % 2 == 0)
    assert set(run.masks.combined()) == {"fc1.weight"}
    run.masks.set("a", {})
    assert run.masks.of("a") == {}
    with pytest.raises(KeyError):
        run.masks.set("a", {"fc9.weight": ones})
    with pytest.raises(ValueError, match="fc1"):
        run.masks.set("a", {"fc1.weight": ones[1:]})


# Two processes.

SCRIPT = """
import hashlib, json, os, sys
from dataclasses import dataclass
import torch
from torch import nn
from makeweight import Trainer, hookimpl
from makeweight.plugin import Structure, parameter, replace
sys.path.insert(0, sys.argv[1])
from tests.helpers_structure import Net, digits, eval_data, train_data

RANK = int(os.environ["RANK"])
KEPT = [list(range(12)), list(range(5, 24))][RANK]
said = {}

def digest(*tensors):
    together = [tensor.detach().contiguous().numpy().tobytes() for tensor in tensors]
    return hashlib.sha256(b"".join(together)).hexdigest()

@dataclass(eq=False)
class Turn:
    # each process decides on another structure: the first one's is that of both
    @hookimpl
    def on_structure(self, trainer):
        if trainer.ending:
            return None
        said["samples"] = digest(*[each for batch in trainer.sample_batches(2) for each in batch])
        said["balanced"] = digest(*[each for batch in trainer.sample_batches(2, balanced=True) for each in batch])
        said["agreed"] = trainer.agree({"rank": RANK})
        said["some"] = trainer.evaluate(examples=33)
        said["before"] = digest(*trainer.model.state_dict().values())
        state, index = trainer.model.state_dict(), torch.tensor(KEPT)
        tensors = {"fc2.weight": state["fc2.weight"][index], "fc2.bias": state["fc2.bias"][index],
                   "fc3.weight": state["fc3.weight"][:, index]}
        kept = {"fc2.weight": {0: KEPT}, "fc2.bias": {0: KEPT}, "fc3.weight": {1: KEPT}}
        return Structure({"number": 1, "hidden": len(index)}, tensors, kept)

    @hookimpl
    def on_build(self, model, record):
        replace(model, "fc2", nn.Linear(32, record["hidden"]))
        replace(model, "fc3", nn.Linear(record["hidden"], 10))

    @hookimpl
    def on_init(self, trainer):
        said["initial"] = digest(*trainer.initial_model().state_dict().values())
        said["after"] = digest(*trainer.model.state_dict().values())
        said["shape"] = list(trainer.model.fc2.weight.shape)
        said["carried"] = trainer.carried("fc2.weight", torch.arange(24), axis=0).tolist()

@dataclass(eq=False)
class Late:
    # a module that no loss reads before the third step
    @hookimpl
    def on_init(self, trainer):
        head = trainer.add_auxiliary("head", nn.Linear(10, 1))
        trainer.idle(lambda: head.parameters() if trainer.step < 2 else [])
        trainer.losses["head"] = lambda batch, output: (
            head(output).square().mean() if trainer.step >= 2 else output.sum() * 0
        )
        trainer.masks.set("late", {"fc1.weight": torch.rand(32, 64) > (0.5 if RANK else 0.8)})

    @hookimpl
    def on_epoch_end(self, trainer):
        said["size"] = trainer.export_size()

torch.manual_seed(RANK)
x, y = train_data()
run = Trainer(Net(), (x, y), eval_data(), plugins={plugins}, epochs=1, batch_size=128, lr=0.1)
run.fit()
said["mask"], said["head"] = digest(run.masks.combined()["fc1.weight"]), digest(*run.auxiliary.state_dict().values())
said["model"] = digest(*run.model.state_dict().values())
said["zeros"] = [int((parameter(run.model, "fc1.weight") == 0).sum()), int((~run.masks.combined()["fc1.weight"]).sum())]
said["metrics"] = {name: value for name, value in run.metrics.items() if name != "seconds"}
said["processes"] = run.accelerator.num_processes
run.export("out.safetensors")
said["written"] = os.path.getsize("out.safetensors") if RANK == 0 else None
with open(f"rank{RANK}.json", "w") as file:
    json.dump(said, file)
run.accelerator.wait_for_everyone()
os._exit(0)  # as `trainer` ends
"""


def ranks_of(plugins: str, folder: Path) -> list[dict[str, Any]]:
    (folder / "script.py").write_text(SCRIPT.replace("{plugins}", plugins))
    two_processes(folder, "script.py", Path(__file__).parent.parent, timeout=90)
    said = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["processes"] for each in said] == [2, 2]
    return said


def digest(*tensors: Tensor) -> str:
    together = [tensor.detach().contiguous().numpy().tobytes() for tensor in tensors]
    return hashlib.sha256(b"".join(together)).hexdigest()


def assert_masks_are_the_firsts(said: list[dict[str, Any]]) -> None:
    for key in ("mask", "head", "model", "zeros", "metrics", "size"):
        assert said[0][key] == said[1][key], key
    assert said[0]["zeros"][0] == said[0]["zeros"][1]
    assert 0.7 < said[0]["zeros"][0] / (32 * 64) < 0.9
    assert said[0]["written"] == said[0]["size"]


def test_idle_parameters_stay_in_the_graph_and_masks_are_the_first_processs_in_two(tmp_path: Path) -> None:
    assert_masks_are_the_firsts(ranks_of('{"late": Late()}', tmp_path))


def test_the_first_process_decides_on_structure_for_both_though_the_other_would_have_decided_otherwise(
    tmp_path: Path,
) -> None:
    said = ranks_of('{"turn": Turn(), "late": Late()}', tmp_path)
    for key in ("samples", "balanced", "some", "before", "initial", "after"):
        assert said[0][key] == said[1][key], key
    assert [each["agreed"] for each in said] == [{"rank": 0}] * 2
    assert [each["shape"] for each in said] == [[12, 32]] * 2
    assert [each["carried"] for each in said] == [list(range(12))] * 2
    assert_masks_are_the_firsts(said)
    x, y = train_data()
    assert said[0]["samples"] == digest(x[:64], y[:64], x[64:128], y[64:128])


def test_without_idle_the_helper_of_agreement_costs_nothing_in_one_process() -> None:
    assert agree(quiet().accelerator, [1, 2]) == [1, 2]
