"""Stages and changes of structure: ranges and step sizes are carried over where the bits stay the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from makeweight import LoopOptions, MakeweightError, Run, Stage, Trainer, hookimpl
from makeweight.files.artifact import read
from makeweight.models.lenets import LeNet300
from makeweight.plugin import Structure, parameter, replace
from makeweight.training import checkpoint
from makeweight_qat import Quantization

pytestmark = pytest.mark.slow  # each test trains several stages

NARROWED = "fc1.weight", "fc1.bias", "fc2.weight"
EXAMPLES = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(96) % 10


@dataclass(eq=False)
class Look:
    """Records the result of `see` in every step, after the plugins before it have acted."""

    see: Callable[[Trainer], Any]
    seen: list[Any] = field(default_factory=list)

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer) -> Generator[None, Any, Any]:
        self.seen.append(self.see(trainer))
        return (yield)


def stages(*options: dict[str, Any], look: Look | None = None, epochs: int = 1, **settings: Any) -> list[Stage]:
    loop: dict[str, Any] = {"batch_size": 32, "epochs": epochs, "schedule": "constant"} | settings
    more = {} if look is None else {"look": look}
    return [Stage(LoopOptions(**loop), {"qat": Quantization(**each), **more}) for each in options]


def run(made: list[Stage], **settings: Any) -> Run:
    torch.manual_seed(0)
    return Run(LeNet300((1, 8, 8), 10), EXAMPLES, EXAMPLES, made, **settings)


def levels(trainer: Trainer) -> dict[str, int]:
    """By layer: the largest number of distinct values in a row of its weight."""
    weights: dict[str, Any] = {name: layer.weight for name, layer in trainer.layers().items()}
    return {name: max(len(row.unique()) for row in weight) for name, weight in weights.items()}


def known(trainer: Trainer) -> dict[str, Any]:
    """The learned step sizes of weights by layer, and the values of `Ranges.known` of activations by name."""
    plugin: Any = trainer.plugins.by_name["qat"]
    steps = {layer: each.step.detach().clone() for layer, each in plugin.quantizers.items() if each.initialised}
    ranges = {} if plugin.observed is None else plugin.observed.known()
    return steps | {name: values for (_, name), (_, values) in ranges.items()}


def test_stages_may_differ_in_bits_and_layers() -> None:
    look = Look(levels)
    run(stages({"weights": 0, "activations": 0}, {"weights": 4}, {"weights": {"fc1": 2}}, look=look)).fit()
    plain, four, two = look.seen[::3]
    assert min(plain.values()) > 60
    assert max(four.values()) <= 15
    assert two["fc1"] == 3
    assert two["fc2"] > 60


def test_nothing_is_attached_in_a_stage_of_0_bits(tmp_path: Path) -> None:
    made = run(stages({"ranges": "learned"}, {"weights": 0, "activations": 0, "begin": 5.0}))
    assert [each["qat"].partition(" (")[0] for each in made.check()] == [  # type: ignore[union-attr]
        "weights of fc1 8, fc2 8, fc3 8", "weights of no layer",
    ]  # fmt: skip
    made.fit()
    assert not made.trainer.auxiliary
    assert set(made.model.state_dict()) == set(LeNet300((1, 8, 8), 10).state_dict())
    assert not any("forward" in vars(module) for module in made.model.modules())
    made.export(tmp_path / "x.safetensors")
    assert read(tmp_path / "x.safetensors").metadata["qat"] == {"weights": {}, "activations": []}


@pytest.mark.parametrize("kind", ["learned", "moving"])
def test_a_stage_continues_with_the_ranges_of_the_same_bits(kind: str) -> None:
    """With a learning rate near 0, values that are carried over stay equal; others are initialised again."""
    look = Look(known)
    given = [{"weights": bits, "activations": {"fc1": 8, "fc2": bits}, "ranges": kind} for bits in (4, 4, 3)]
    made = run(stages(*given, look=look, lr=1e-30))
    made.fit()
    first, second, third = look.seen[2], look.seen[3], look.seen[6]
    assert set(second) == {"x", "relu", *(["fc1", "fc2", "fc3"] if kind == "learned" else [])}
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert torch.equal(third["x"], look.seen[5]["x"])  # 8 bits in each stage
    assert "relu" not in third  # observed in the stage's first step
    for name in set(third) - {"x"}:  # of 3 bits, from the weights
        assert float((third[name] / first[name]).min()) > 1.2


def test_another_kind_of_ranges_starts_again() -> None:
    look = Look(known)
    run(stages({"ranges": "moving"}, {"ranges": "learned", "begin": 0.5}, {"ranges": "minmax"}, look=look)).fit()
    assert look.seen[3] == {}  # before begin
    assert set(look.seen[2]) == {"x", "relu", "relu_1"}
    assert set(look.seen[5]) == {"fc1", "fc2", "fc3"}  # just initialised; activations are observed in this step
    assert look.seen[6] == {}


def test_ranges_are_carried_over_by_site() -> None:
    """Each stage has one range, of different tensors: the auxiliary modules have equal names and shapes."""
    look = Look(known)
    made = run(stages(*({"activations": {layer: 8}, "weights": 0} for layer in ("fc1", "fc3", "fc3")), look=look))
    made.fit()
    assert [sorted(each) for each in look.seen] == [
        [], ["x"], ["x"], [], ["relu_1"], ["relu_1"], ["relu_1"], ["relu_1"], ["relu_1"],
    ]  # fmt: skip
    assert torch.equal(look.seen[5]["relu_1"], look.seen[6]["relu_1"])


@pytest.mark.parametrize("kind", ["learned", "moving"])
def test_a_stage_with_a_later_begin_continues_with_known_ranges_at_begin(kind: str) -> None:
    look = Look(lambda trainer: (max(levels(trainer).values()), known(trainer)))
    made = run(
        stages({"weights": 4, "ranges": kind}, {"weights": 4, "ranges": kind, "begin": 1.0}, look=look, epochs=2)
    )
    made.fit()
    assert [most > 60 for most, _ in look.seen] == [False] * 6 + [True] * 3 + [False] * 3
    before, after = look.seen[6][1], look.seen[9][1]
    assert set(before) == set(after) != set()
    assert all(torch.equal(before[name], after[name]) for name in before)


@dataclass(eq=False)
class Narrow:
    """Keeps every second neuron of fc1 and replaces fc3 by two layers, at the start or at the end of a stage."""

    in_stage: int
    at_end: bool

    @hookimpl
    def on_structure(self, trainer: Trainer) -> Structure | None:
        if (trainer.stage, trainer.ending) != (self.in_stage, self.at_end):
            return None
        kept = list(range(0, 300, 2))
        first, bias, second = (parameter(trainer.model, name).detach() for name in NARROWED)
        tensors = dict(zip(NARROWED, (first[kept], bias[kept], second[:, kept]), strict=True))
        return Structure(
            {"number": 1}, tensors, {"fc1.weight": {0: kept}, "fc1.bias": {0: kept}, "fc2.weight": {1: kept}}
        )

    @hookimpl
    def on_build(self, model: nn.Module, record: dict[str, Any]) -> None:
        replace(model, "fc1", nn.Linear(64, 150))
        replace(model, "fc2", nn.Linear(150, 100))
        replace(model, "fc3", nn.Sequential(nn.Linear(100, 20), nn.Linear(20, 10)))


@pytest.mark.parametrize("kind", ["learned", "moving"])
@pytest.mark.parametrize("at_end", [False, True])
def test_ranges_and_step_sizes_follow_a_new_structure(kind: str, at_end: bool) -> None:
    look = Look(known)
    both = stages({"ranges": kind}, {"ranges": kind}, look=look, lr=1e-30)
    for stage in both:
        stage.plugins = {"narrow": Narrow(1, at_end), **stage.plugins}
    made = run(both)
    assert made.check()[0]["qat"] == "weights 8, activations 8 (bits), layers found when the stage begins"
    made.fit()
    before, after = look.seen[2], known(made.trainer) if at_end else look.seen[3]
    if kind == "learned":
        assert torch.equal(after["fc1"], before["fc1"][::2])
        assert torch.equal(after["fc2"], before["fc2"])
        assert len(after["fc3.0"]) == 20
    else:
        before = look.seen[5]
    for name in ("x", "relu", "relu_1"):
        assert after[name][2:].tolist() == pytest.approx(before[name][2:].tolist(), rel=0.1)
    assert ("_0" in after) is at_end  # the tensor between the two new layers was observed
    record = made.trainer.artifact().metadata["qat"]
    assert record["weights"] == {layer: [8, 0] for layer in ("fc1", "fc2", "fc3.0", "fc3.1")}
    assert [name for _, name, *_ in record["activations"]] == ["x", "relu", "relu_1", "_0"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("on",), 1),
        (("ranges",), None),
        (("weights", 0, 0), 3),
        (("weights", 0, 1), True),
        (("weights", 0, 2), torch.zeros(300)),
        (("weights", 0, 2), torch.full((300,), torch.inf)),
        (("weights", 0, 2), torch.ones(300).double()),
        (("weights", 0, 2), [1.0]),
        (("activations", 0, 1), None),
        (("activations", 0, 2), 9),
        (("activations", 0, 3), torch.ones(5)),
        (("activations", 0, 3), torch.tensor([1.0, torch.nan, 1.0, 0.0])),
        (("activations", 0, 3), torch.tensor([1.0, 1.0, -1.0, 0.0])),
        (("activations", 0, 3), torch.tensor([1.0, 1.0, 1.0, 256.0])),
        (("activations", 0, 3), torch.tensor([1.0, 1.0, 1.0, 0.5])),
    ],
    ids=str,
)
def test_a_damaged_state_is_refused(path: tuple[Any, ...], value: Any) -> None:
    made = run(stages({"ranges": "learned"}))
    made.fit()
    inside = state = made.trainer.plugins.by_name["qat"].state_dict()
    Quantization(ranges="learned").load_state_dict(state)
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    with pytest.raises(ValueError, match=r"damaged: expected"):
        Quantization(ranges="learned").load_state_dict(state)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    made = run(stages({"ranges": "learned"}), out=tmp_path)
    made.fit()
    parts = checkpoint.load(sorted((tmp_path / "checkpoints").iterdir())[-1])
    parts["plugins"]["qat"]["weights"][0][2] = torch.zeros(300)
    checkpoint.save(tmp_path / "checkpoints", 99, parts)
    with pytest.raises(
        MakeweightError, match="does not fit this run's plugin 'qat': qat: the learned step sizes of 'fc1'"
    ):
        run(stages({"ranges": "learned"}), out=tmp_path, resume=True).fit()


@pytest.mark.parametrize("kind", ["learned", "moving"])
def test_a_run_resumes_from_every_checkpoint_of_two_stages_with_different_bits(kind: str, tmp_path: Path) -> None:
    def made(out: Path, resume: bool = False) -> Run:
        each = {"ranges": kind, "activations": {"fc1": 8, "fc2": 5}}
        both = stages({"weights": 4, **each}, {"weights": {"fc*": 3, "fc3": 4}, **each, "begin": 0.5},
                      epochs=2, checkpoint_every=1, keep_checkpoints=99)  # fmt: skip
        one = run(both, out=out, resume=resume)
        one.fit()
        one.export(out / "model.safetensors")
        return one

    whole = made(tmp_path / "whole")
    written = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert len(written) == 14  # one at the beginning of each stage, and one after each step
    expected = read(tmp_path / "whole" / "model.safetensors")
    assert expected.metadata["qat"]["weights"] == {"fc1": [3, 0], "fc2": [3, 0], "fc3": [4, 0]}
    assert [bits for *_, bits in expected.metadata["qat"]["activations"]] == [8, 5]
    for number in range(len(written)):
        out = tmp_path / f"broken {number}"
        for path in written[: number + 1]:
            shutil.copytree(path, out / "checkpoints" / path.name)
        again = made(out, resume=True)
        found = read(out / "model.safetensors")
        assert found.metadata == expected.metadata, written[number].name
        assert list(found.tensors) == list(expected.tensors)
        for name, tensor in expected.tensors.items():
            assert torch.equal(found.tensors[name], tensor), (written[number].name, name)
        for one, other in ((whole.model, again.model), (whole.trainer.auxiliary, again.trainer.auxiliary)):
            for name, tensor in one.state_dict().items():
                assert torch.equal(tensor, other.state_dict()[name]), (written[number].name, name)
        assert again.evaluate() == whole.evaluate()
