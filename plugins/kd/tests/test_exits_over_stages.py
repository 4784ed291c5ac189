"""Exits that one stage trains and a later stage exports: frozen, and refused where the network has changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from makeweight import MakeweightError, Run, Trainer, UsageError, load, load_tensors
from makeweight.training import checkpoint
from makeweight_kd import Distillation, exits_of

from .helpers_kd import (
    Change,
    Look,
    assert_same_bits,
    install_change,
    layers,
    self_distillation,
    small_resnet,
    staged,
    trainer,
)

pytestmark = pytest.mark.slow  # each test trains several stages

TAUGHT: dict[str, Any] = {"teacher": "initial", "exits": "all"}


def heads_of(trainer: Trainer) -> dict[str, Tensor]:
    module = trainer.auxiliary["kd"]
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def written(path: Path) -> list[Tensor]:
    """The tensors of the exits in a file."""
    return [tensor for name, tensor in sorted(load_tensors(path).items()) if name.startswith("kd.")]


@pytest.mark.parametrize(
    "later", [TAUGHT, {"weight": 0, "exits": "all"}, {"teacher": "initial", "exits": "all", "weight": 0}]
)
def test_a_later_stage_keeps_exits_frozen_and_exports_them(later: dict[str, Any], tmp_path: Path) -> None:
    ended: list[dict[str, Tensor]] = []
    look = Look(end=lambda trainer, metrics: ended.append(heads_of(trainer)))
    plugins = Distillation(exits="all"), Distillation(**later)
    run = staged(small_resnet(), *([plugin, look] for plugin in plugins), lr=0.05)
    run.fit()
    first, second = ended
    assert_same_bits(first, second)
    assert list(run.trainer.auxiliary) == ["kd"]
    assert not any(parameter.requires_grad for parameter in run.trainer.auxiliary.parameters())
    assert list(run.trainer.losses) == (["task"] if later.get("weight") == 0 else ["task", "kd"])
    run.export(tmp_path / "model.safetensors")
    exits = exits_of(load(tmp_path / "model.safetensors", small_resnet()))
    assert exits.sections == ["layer1", "layer2"]
    assert_same_bits(dict(enumerate(first.values())), dict(enumerate(exits.heads.state_dict().values())))  # type: ignore[arg-type]


def test_the_last_stage_alone_can_export_the_exits_of_an_earlier_one(tmp_path: Path) -> None:
    """The stage between them does not set `exits`."""
    ended: list[dict[str, Tensor]] = []
    look = Look(end=lambda trainer, metrics: ended.append(heads_of(trainer)))
    run = staged(small_resnet(), [Distillation(), look], [Distillation(teacher="initial")], [Distillation(**TAUGHT)])
    run.fit()
    run.export(tmp_path / "model.safetensors")
    exits = exits_of(load(tmp_path / "model.safetensors", small_resnet()))
    (first,) = ended
    assert_same_bits(dict(enumerate(first.values())), dict(enumerate(exits.heads.state_dict().values())))  # type: ignore[arg-type]


def test_a_later_stage_of_self_distillation_continues_with_the_trained_classifiers(tmp_path: Path) -> None:
    began: list[dict[str, Tensor]] = []
    ended: list[dict[str, Tensor]] = []
    first = Look(end=lambda trainer, metrics: ended.append(heads_of(trainer)))
    last = Look(
        lambda trainer: began.append(heads_of(trainer)), lambda trainer, metrics: ended.append(heads_of(trainer))
    )
    plugins = [Distillation(), Distillation(**TAUGHT), Distillation()]
    run = staged(small_resnet(), [plugins[0], first], [plugins[1]], [plugins[2], last], lr=0.05)
    run.fit()
    assert_same_bits(ended[0], began[0])
    parameters = [name for name, _ in run.trainer.auxiliary["kd"].named_parameters()]
    assert all(not torch.equal(ended[0][name], ended[1][name]) for name in parameters)
    assert all(parameter.requires_grad for parameter in run.trainer.auxiliary.parameters())
    run.export(tmp_path / "model.safetensors")
    assert written(tmp_path / "model.safetensors") == []


def test_exits_are_the_same_bits_when_resumed_from_every_checkpoint(
    tmp_path: Path,
) -> None:
    def run(out: Path, resume: bool = False) -> dict[str, Tensor]:
        plugins: list[list[object]] = [[Distillation(exits="all")], [Distillation(**TAUGHT)], [Distillation(exits="2")]]
        found = staged(layers(), *plugins, out=out, resume=resume, lr=0.05, checkpoint_every=2,
                       keep_checkpoints=100)  # fmt: skip
        found.fit()
        found.export(out / "model.safetensors")
        return load_tensors(out / "model.safetensors")

    whole = run(tmp_path / "whole")
    assert {name.partition(".cl")[0] for name in whole if "classifier" in name} == {"kd.exit2"}
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert len(checkpoints) == 9
    for path in checkpoints:
        shutil.copytree(path, tmp_path / f"from {path.name}" / "checkpoints" / path.name)
        assert_same_bits(whole, run(tmp_path / f"from {path.name}", resume=True))


# Another structure.


def test_exits_that_do_not_fit_a_new_structure_are_refused_at_the_start_of_the_stage() -> None:
    run = staged(layers(), [Distillation(exits="all")], [Change(), Distillation(**TAUGHT)])
    with pytest.raises(
        UsageError, match=r"kd\.exits all: expected an earlier stage without a teacher .* present structure"
    ):
        run.fit()
    staged(layers(), [Distillation(exits="all")], [Change(), Distillation(teacher="initial")]).fit()  # not asked for


def test_exits_that_fit_a_new_structure_are_exported(tmp_path: Path) -> None:
    first = Distillation(exits="all", sections=["first"])
    run = staged(layers(), [first], [Change("last"), Distillation(**TAUGHT, sections=["first"])])
    run.fit()
    artifact = run.export(tmp_path / "model.safetensors")
    assert artifact is not None
    assert [each["section"] for each in artifact.metadata["kd"]["exits"]] == ["first"]
    expected = {f"kd.exit1.{name}": tensor for name, tensor in first.heads["first"].state_dict().items()}
    assert_same_bits(expected, {name: artifact.tensors[name] for name in expected})


@pytest.mark.parametrize("options", [{}, {"teacher": "initial"}])
def test_a_structure_at_the_end_of_a_stage_exports_exits_that_fit_and_refuses_others(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the run is resumed from its last checkpoint, after the change."""
    install_change(tmp_path, monkeypatch)
    for to, fits in (("last", True), ("narrow", False)):
        kept: dict[str, Any] = {"exits": "all", "sections": ["first"]}

        def run(resume: bool, to: str = to, kept: dict[str, Any] = kept) -> Run:
            last = Change(to, ending=True), Distillation(**kept, **options)
            found = staged(layers(), [Distillation(**kept)], last, out=tmp_path / to, resume=resume)
            found.fit()
            assert found.trainer.ended
            return found

        for resume in (False, True):
            found = run(resume)
            if fits:
                artifact = found.export(tmp_path / f"{resume}.safetensors")
                assert artifact is not None
                assert [each["section"] for each in artifact.metadata["kd"]["exits"]] == ["first"]
                exits = exits_of(load(tmp_path / f"{resume}.safetensors", layers()).eval())
                assert exits.model.get_parameter("second.weight").shape == (11, 12)
                assert [logits.shape for logits in exits(torch.zeros(2, 1, 8, 8))] == [(2, 10), (2, 10)]
            else:
                assert found.trainer.export_size() > 0  # a trial
                with pytest.raises(MakeweightError, match=r"kd\.exits all: there are no shallow classifiers to export"):
                    found.export(tmp_path / "model.safetensors")
        if fits:
            assert_same_bits(*(load_tensors(tmp_path / f"{resume}.safetensors") for resume in (False, True)))


def test_self_distillation_finds_new_sections_after_a_change_of_structure() -> None:
    plugins = Distillation(), Distillation(exits="all")
    staged(layers(), [plugins[0]], [Change("two"), plugins[1]]).fit()
    assert [self_distillation(plugin).sections for plugin in plugins] == [
        ["first", "second"],
        ["first.0", "first", "second"],
    ]


# Exits that no stage trained.


def test_a_stage_of_weight_0_may_set_exits_that_a_later_stage_trains(tmp_path: Path) -> None:
    run = staged(layers(), [Distillation(weight=0, exits="all")], [Distillation(exits="all")])
    run.fit()
    run.export(tmp_path / "model.safetensors")
    assert len(written(tmp_path / "model.safetensors")) > 0


def test_exporting_exits_that_no_stage_trained_is_an_error(tmp_path: Path) -> None:
    run = trainer(Distillation(weight=0, exits="all"), epochs=1)
    run.fit()
    assert run.export_size() > 0
    with pytest.raises(MakeweightError, match=r"kd\.exits all: there are no shallow classifiers to export: no stage"):
        run.export(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


# An untrusted checkpoint.

ENTRY = {"section": "first", "kind": "vector", "widths": [12, 12], "stride": 2, "classes": 10}


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (None, "damaged: expected a list"),
        (["first"], "damaged: expected section"),
        ([ENTRY | {"more": 1}], "damaged: expected section"),
        ([ENTRY | {"widths": [12, 1 << 40]}], "is damaged: unexpected value in {"),
        ([ENTRY | {"widths": 3}], "is damaged: unexpected value in {"),
        ([ENTRY | {"kind": ["map"]}], "is damaged: unexpected value in {"),
        ([ENTRY | {"section": 1}], "is damaged: unexpected value in {"),
        ([ENTRY] * 2000, "damaged: expected a list"),
        ([], "expected an earlier stage without a teacher"),
        ([ENTRY | {"section": "fc9"}], "for the network's present structure"),
        ([ENTRY | {"section": ""}], "for the network's present structure"),
        ([ENTRY | {"widths": [11, 12]}], "for the network's present structure"),
        ([ENTRY | {"classes": 11}], "for the network's present structure"),
        ([ENTRY | {"kind": "map"}], "for the network's present structure"),
        ([ENTRY | {"widths": [12, 1 << 20]}], "for the network's present structure"),
        ([ENTRY | {"widths": [12, 13]}], "no auxiliary module 'kd' with the shapes of this run"),
    ],
)
def test_a_damaged_state_is_refused(heads: Any, message: str, tmp_path: Path) -> None:
    def run(resume: bool = False) -> Run:
        plugins = Distillation(exits="all", sections=["first"]), Distillation(**TAUGHT)
        return staged(layers(), *([plugin] for plugin in plugins), out=tmp_path, resume=resume)

    run().fit()
    saved = checkpoint.newest(tmp_path / "checkpoints", pytest.fail)
    assert saved is not None
    assert saved["plugins"] == {"kd": {"heads": [ENTRY]}}
    saved["plugins"]["kd"]["heads"] = heads
    shutil.rmtree(tmp_path / "checkpoints")
    checkpoint.save(tmp_path / "checkpoints", 8, saved, 1)
    with pytest.raises(MakeweightError, match=rf"^[^\n]*{message}[^\n]*(\nin plugin .*)?$"):
        run(resume=True).fit()
