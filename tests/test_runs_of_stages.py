"""Stages: a change of structure between them, resumed from any checkpoint and after any kill, ends the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from makeweight import Run, Trainer, UsageError, load
from makeweight.files.artifact import read

from .helpers import (
    ENVIRONMENT,
    assert_same_bits,
    assert_same_run,
    begin_two_processes,
    kill_all,
    summary,
    two_processes,
)
from .helpers_structure import Net, eval_data, logits, net, run_of, strangers, train_data, trained


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from strangers(tmp_path_factory)


PRUNE = {"sparsity": 0.7, "end": 1.0, "every": 1}
HALVES = {"layers": "fc1", "batches": 2}
DROP = {"pairs": {"fc2": "fc3"}, "fraction": 0.25}
RUNS: dict[str, list[dict[str, dict[str, Any]]]] = {
    "structure, then masks and codebooks": [
        {}, {"halves": HALVES}, {"prune": PRUNE, "cluster": {"values": 8, "begin": 0.5}}],
    "masks and codebooks, then structure": [
        {"prune": PRUNE, "cluster": {"values": 8, "begin": 0.5}}, {"drop": DROP, "prune": PRUNE}, {"halves": HALVES}],
    "structure at each stage's end": [
        {"halves": HALVES | {"at": "end"}, "prune": PRUNE | {"layers": "fc3"}}, {"drop": DROP | {"at": "end"}},
        {"halves": {"layers": "fc2", "at": "end"}, "drop": {"pairs": {"fc1.0": "fc1.1"}}}],
    "structure, then kd, qat and prune": [
        {"kd": {}}, {"halves": HALVES, "kd": {"teacher": "initial"}},
        {"qat": {"weights": 4}, "kd": {"teacher": "initial"}, "prune": PRUNE}],
    "kd and qat, then structure": [
        {"kd": {}, "qat": {"weights": 4}}, {"drop": DROP, "qat": {"weights": 4}, "kd": {"teacher": "initial"}},
        {"halves": HALVES | {"at": "end"}, "qat": {"weights": 4}}],
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_three_stages_is_resumed_from_every_one_of_its_checkpoints_to_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"checkpoint_every": 2, "keep_checkpoints": 1000, "epochs": 1, "batch_size": 128}
    whole = run_of(*RUNS[name], out=tmp_path / "whole", **settings)
    whole.fit()
    whole.export(tmp_path / "whole" / "model.safetensors")
    written = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    stages = [int(each.name.partition("stage-")[2][:3] or 0) for each in written]
    assert set(stages) == {0, 1, 2}
    assert len(written) >= 9
    if "end" in name:
        assert [each.name.endswith("end") for each in written].count(True) == 3
    for last in written:
        resumed = tmp_path / f"from {last.name}"
        (resumed / "checkpoints").mkdir(parents=True)
        for each in written[: written.index(last) + 1][-2:]:
            shutil.copytree(each, resumed / "checkpoints" / each.name)
        shutil.copy(tmp_path / "whole" / "metrics.jsonl", resumed)
        run = run_of(*RUNS[name], out=resumed, resume=True, **settings)
        run.fit()
        run.export(resumed / "model.safetensors")
        assert_same_run(tmp_path / "whole", resumed)
        assert_same_bits({"logits": logits(whole.model)}, {"logits": logits(run.model)})
        shutil.rmtree(resumed)
    restored = load(tmp_path / "whole" / "model.safetensors", net(seed=1))
    assert torch.equal(logits(restored), logits(whole.model))


MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm, self.drop = nn.Linear(64, 48), nn.BatchNorm1d(48), nn.Dropout(0.2)
        self.fc2, self.fc3 = nn.Linear(48, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.fc3(self.fc2(self.drop(self.norm(self.fc1(x.flatten(1))).relu())).relu())

def build():
    return Net()
"""
RECIPE = """
plugins: [halves, drop, prune]
model: my_model:build
batch_size: 256
stages:
  - {epochs: 1, prune: {sparsity: 0.5, every: 1}, halves: {layers: fc1, batches: 1, at: end}}
  - epochs: 1
    prune: {sparsity: 0.7, every: 1, layers: fc3}
    drop: {pairs: {fc2: fc3}}
    halves: {layers: fc2, batches: 1, at: end}
"""
# A process is killed before it calls a function for the n-th time; children do it, so that torch is imported once.
KILLS = """
import os, signal, sys
import torch
from makeweight.training import checkpoint
from makeweight.commands.cli import main
import acme_halves.drop, acme_halves.halves
torch.set_num_threads(1)

def die_at(module, name, number):
    function, calls = getattr(module, name), []
    def dying(*arguments, **named):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    setattr(module, name, dying)

def child(words, *place):
    pid = os.fork()
    if pid == 0:
        if place:
            die_at(*place)
        os._exit(main(words))
    return os.waitpid(pid, 0)[1]

MODULES = {"checkpoint": checkpoint, "halves": acme_halves.halves, "drop": acme_halves.drop}
words = ["--recipe", "stages.yaml", "--out"]
assert main([*words, "whole"]) == 0
for place in sys.argv[1:]:
    module, name, number = place.split()
    assert child([*words, place], MODULES[module], name, int(number)) == signal.SIGKILL, place
    assert not os.path.exists(place + "/model.safetensors")
    os.makedirs("seen", exist_ok=True)
    found = os.path.join(place, "checkpoints")
    open(os.path.join("seen", place), "w").write(" ".join(sorted(os.listdir(found))) if os.path.isdir(found) else "")
    assert child(["--resume", "--out", place]) == 0, place
"""
# Of a stage each: a checkpoint at its beginning, one after its epoch, one at its end.
FIRST, SECOND = ["step-000000005", "step-000000005-end"], ["step-000000005-stage-001", "step-000000010-stage-001"]
PLACES = {
    "halves factors 1": ["step-000000000", FIRST[0]],
    "halves checked 1": ["step-000000000", FIRST[0]],
    "checkpoint save 3": ["step-000000000", FIRST[0]],
    "drop linear 3": FIRST,
    "checkpoint save 4": FIRST,
    "halves factors 2": SECOND,
    "checkpoint save 6": SECOND,
}


def test_a_run_killed_before_within_and_after_each_change_of_structure_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "stages.yaml").write_text(RECIPE)
    words = [sys.executable, "-c", KILLS, *PLACES]
    done = subprocess.run(
        words, cwd=tmp_path, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for place, left in PLACES.items():
        assert (tmp_path / "seen" / place).read_text().split() == left, place
        assert_same_run(tmp_path / "whole", tmp_path / place)
        assert summary(tmp_path / place)["processes"] == 1
    records = [each.plugin for each in read(tmp_path / "whole" / "model.safetensors").records]
    assert records == ["halves", "drop", "halves"]


KILLED = """
import os, signal, sys
from makeweight.commands.cli import command
if os.environ.get("KILL"):
    import acme_halves.drop
    linear, calls = acme_halves.drop.linear, []
    def dying(model, name):
        calls.append(name)
        if len(calls) == 3 and os.environ["RANK"] == "0":  # within on_build
            os.kill(os.getpid(), signal.SIGKILL)
        return linear(model, name)
    acme_halves.drop.linear = dying
sys.argv[0] = "trainer"
command()
"""


def test_two_processes_killed_within_a_change_of_structure_and_resumed_end_as_unbroken_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "stages.yaml").write_text(RECIPE)
    (tmp_path / "killed.py").write_text(KILLED)
    monkeypatch.setenv("KILL", "1")
    process = begin_two_processes(tmp_path, "killed.py", "--recipe", "stages.yaml", "--out", "broken")
    try:
        process.communicate(timeout=240)
    finally:
        kill_all(process)
    assert process.returncode != 0
    monkeypatch.delenv("KILL")
    assert sorted(each.name for each in (tmp_path / "broken" / "checkpoints").iterdir()) == FIRST
    two_processes(tmp_path, "killed.py", "--recipe", "stages.yaml", "--out", "broken", "--resume")
    two_processes(tmp_path, "killed.py", "--recipe", "stages.yaml", "--out", "whole")
    assert summary(tmp_path / "broken")["processes"] == summary(tmp_path / "whole")["processes"] == 2
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert summary(tmp_path / "whole")["export"]["accuracy"] == summary(tmp_path / "whole")["accuracy"]


# What of a model stays as the user has made it.


def frozen(model: Net) -> dict[str, Tensor]:
    """Freeze a batch norm in a model that is trained; its state."""
    model.norm.eval().requires_grad_(False)
    with torch.no_grad():
        model.norm.state_dict()["running_mean"].add_(0.1)
        model.norm.weight.mul_(1.5)
    return {name: each.clone() for name, each in model.norm.state_dict().items()}


STAGES_AROUND: dict[str, list[dict[str, dict[str, Any]]]] = {
    "one stage": [{"prune": PRUNE}],
    "two stages": [{"prune": PRUNE}, {}],
    "structure at the start": [{}, {"halves": {"layers": "fc2", "batches": 1}}],
    "structure at the end": [{"drop": DROP | {"at": "end"}}, {}],
    "taught by itself and quantized": [{"kd": {}}, {"qat": {"weights": 4}}],
}


@pytest.mark.parametrize("name", STAGES_AROUND)
def test_a_frozen_batch_norm_stays_frozen_in_training_evaluation_stages_and_when_resumed(
    name: str, tmp_path: Path
) -> None:
    model = net().train()
    before = frozen(model)
    settings: dict[str, Any] = {"model": model, "epochs": 1, "checkpoint_every": 2}
    run = run_of(*STAGES_AROUND[name], out=tmp_path / "run", **settings)
    run.fit()
    run.evaluate()
    assert_same_bits(run.model.get_submodule("norm").state_dict(), before)
    last = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    shutil.rmtree(last)
    resumed = run_of(*STAGES_AROUND[name], out=tmp_path / "run", resume=True, **settings)
    resumed.fit()
    assert_same_bits(resumed.model.get_submodule("norm").state_dict(), before)
    assert torch.equal(logits(resumed.model), logits(run.model))


@pytest.mark.parametrize("plugins", [{}, {"halves": {"layers": "fc2", "at": "end"}}], ids=["plain", "structure"])
def test_the_librarys_trainer_leaves_a_frozen_module_in_its_mode(plugins: dict[str, dict[str, Any]]) -> None:
    model = net().train()
    before = frozen(model)
    run = trained(plugins, model)
    assert run.model is model
    assert not model.norm.training
    assert model.training
    assert model.fc1.training
    assert_same_bits(model.norm.state_dict(), before)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_model_that_is_in_eval_as_a_whole_is_trained(stages: int) -> None:
    model = net().eval()
    plain: list[dict[str, dict[str, Any]]] = [{}] * stages
    run = run_of(*plain, model=model, epochs=1)
    run.fit()
    assert run.model.training
    assert int(run.model.get_buffer("norm.num_batches_tracked")) == 4 * stages
    other = run_of(*plain, model=net().train(), epochs=1)
    other.fit()
    assert_same_bits(run.model.state_dict(), other.model.state_dict())


def everything_of(model: nn.Module) -> list[Any]:
    """All that a run might change of a model, but for its tensors' values."""
    modules = dict(model.named_modules())
    return [
        [(name, id(each), each.training, sorted(vars(each)), type(each)) for name, each in modules.items()],
        [(name, id(each), each.requires_grad, each.grad is None) for name, each in model.named_parameters()],
        [(name, id(each)) for name, each in model.named_buffers()],
        [len(value) for each in modules.values() for name, value in sorted(vars(each).items()) if "_hooks" in name],
    ]


def test_a_run_never_touches_the_model_that_it_is_given(tmp_path: Path) -> None:
    model = net()
    model.fc2.requires_grad_(False)
    model.norm.eval()
    before, state = everything_of(model), {name: each.clone() for name, each in model.state_dict().items()}
    stages: list[dict[str, dict[str, Any]]] = [
        {"kd": {}, "prune": PRUNE},
        {"halves": HALVES, "qat": {"weights": 4}},
        {"drop": DROP | {"at": "end"}},
    ]
    run = run_of(*stages, model=model, out=tmp_path / "run", epochs=1)
    run.check()
    run.fit()
    run.evaluate()
    run.export(tmp_path / "model.safetensors")
    assert run.model is not model
    assert everything_of(model) == before
    assert_same_bits(model.state_dict(), state)


def test_the_librarys_trainer_trains_the_very_model_that_it_is_given() -> None:
    model = net()
    parameters = dict(model.named_parameters())
    run = trained({"prune": PRUNE}, model)
    assert run.model is model
    assert {name: id(each) for name, each in model.named_parameters()} == {
        k: id(each) for k, each in parameters.items()
    }
    assert int((model.fc1.weight == 0).sum()) == round(0.7 * model.fc1.weight.numel())


# What cannot be built again is refused before training.


def with_(change: Callable[[Net], Any]) -> nn.Module:
    model = net()
    return changed if isinstance(changed := change(model), nn.Module) else model


class Locked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock = Lock()


class Generating(Net):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = (number for number in range(10))


def set_(model: Net, name: str, module: Any) -> None:
    setattr(model, name, module)


def old_weight_norm(model: Net) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model.fc2)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight_norm": (lambda: with_(lambda m: set_(m, "fc2", parametrizations.weight_norm(m.fc2))), "'fc2'.*weight_norm"),
    "spectral_norm": (lambda: with_(lambda m: set_(m, "fc2", parametrizations.spectral_norm(m.fc2))), "'fc2'"),
    "old weight_norm": (lambda: with_(old_weight_norm), "'fc2'.*weight_norm"),
    "old spectral_norm": (lambda: with_(lambda m: set_(m, "fc2", nn.utils.spectral_norm(m.fc2))), "'fc2'"),
    "compiled": (lambda: with_(lambda m: torch.compile(m)), "model is compiled"),
    "compiled in place": (lambda: with_(lambda m: m.compile()), "model is compiled"),
    "a part compiled": (lambda: with_(lambda m: set_(m, "fc2", torch.compile(m.fc2))), "'fc2' is compiled"),
    "a part compiled in place": (lambda: with_(lambda m: m.fc2.compile()), "'fc2' is compiled"),
    "lazy Linear": (lambda: with_(lambda m: set_(m, "fc2", nn.LazyLinear(24))), "'fc2' is not initialised"),
    "lazy batch norm": (lambda: with_(lambda m: set_(m, "norm", nn.LazyBatchNorm1d())), "'norm' is not initialised"),
    "a lock": (Locked, "cannot be copied"),
    "a generator": (Generating, "cannot be copied"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("made_of", [Trainer, Run])
def test_a_model_that_cannot_be_built_again_is_refused_in_one_line_before_training(name: str, made_of: Any) -> None:
    make, said = REFUSED[name]
    model = make()
    with pytest.raises(UsageError, match=said) as raised:
        made_of(model, train_data(), eval_data())
    assert "\n" not in str(raised.value)
