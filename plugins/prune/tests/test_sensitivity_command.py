from __future__ import annotations

import json
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from makeweight.commands.cli import main
from makeweight.models.lenets import LeNet300

MODULE = """
import torch
from makeweight import Data

class Forbidden:
    def __len__(self):
        return 10

    def __getitem__(self, index):
        raise AssertionError("the test data was read")

generator = torch.Generator().manual_seed(0)
labels = torch.randint(0, 10, (300,), generator=generator)
pixels = torch.randn(10, 1, 8, 8, generator=generator)[labels] + 2 * torch.randn(300, 1, 8, 8, generator=generator)

def data():
    return Data((pixels[:200], labels[:200]), Forbidden(), (pixels[200:], labels[200:]), num_classes=10)
"""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LeNet300:
    """A network with its weights in weights.safetensors, and data whose test split must not be read."""
    torch.manual_seed(0)
    model = LeNet300((1, 8, 8), 10)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sensitivity_data.py").write_text(MODULE)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return model


WORDS = ["sensitivity", "weights.safetensors", "--model", "lenet300", "--data", "sensitivity_data:data"]


def test_each_layer_is_pruned_alone_and_measured_on_the_validation_data(
    network: LeNet300, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "--sparsities", "0.9,0.5"]) == 0
    record = json.loads((tmp_path / "weights.sensitivity.json").read_text())
    import sensitivity_data  # type: ignore[import-not-found]

    x, y = sensitivity_data.pixels[200:], sensitivity_data.labels[200:]

    def accuracy() -> float:
        with torch.no_grad():
            return float((network(x).argmax(1) == y).double().mean())

    assert record["dense"] == pytest.approx(accuracy())
    assert (record["examples"], record["metric"], list(record["layers"])) == (100, "accuracy", ["fc1", "fc2", "fc3"])
    for name, each in record["layers"].items():
        weight = network.get_parameter(f"{name}.weight")
        before = weight.detach().clone()
        expected = []
        for sparsity in (0.5, 0.9):
            order = before.abs().flatten().argsort()
            weight.data.view(-1)[order[: round(sparsity * len(order))]] = 0
            expected.append(accuracy())
            weight.data.copy_(before)
        assert each == {"weights": before.numel(), "sparsity": [0.5, 0.9], "values": pytest.approx(expected)}
    shown = capsys.readouterr().out
    assert "measuring fc3" in shown
    assert "19,200" in shown
    assert "50 %" in shown
    assert xml.etree.ElementTree.parse(tmp_path / "weights.sensitivity.svg").getroot().tag.endswith("svg")


def test_a_metric_of_which_less_is_better_is_a_gain_and_not_a_loss(network: LeNet300, tmp_path: Path) -> None:
    from makeweight_prune.curves import read

    assert main([*WORDS, "--sparsities", "0.5,0.9", "--metric", "perplexity"]) == 0
    record = json.loads((tmp_path / "weights.sensitivity.json").read_text())
    assert (record["metric"], record["higher_is_better"]) == ("perplexity", False)
    curve = read("weights.sensitivity.json").layers["fc1"]
    assert curve.drop == [value - record["dense"] for value in record["layers"]["fc1"]["values"]]


def test_layers_examples_and_names_follow_the_options_and_training_takes_the_file(
    network: LeNet300, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "--layers", "fc[12]", "--examples", "40", "-o", "a.json", "--plot", "b.png"]) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["examples"], list(record["layers"])) == (40, ["fc1", "fc2"])
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    words = ["--plugins", "prune", "--prune.sensitivity", "a.json", "--prune.layers", "fc[12]", "--dry-run"]
    assert main([*words, "--prune.sparsity", "0.8"]) == 0
    assert "49,200 weights of 2 layers, sparsity fc1 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsities", "0.5,1"], "--sparsities 0.5,1: expected numbers between 0 and 1, for example 0.5,0.9,0.95"),
        (["--sparsities", "half"], "--sparsities half: expected numbers"),
        (["--sparsities", "nan"], "--sparsities nan: expected numbers"),
        (["--examples", "0"], "--examples 0: expected 1 or more"),
        (["--layers", "conv*"], "no layer matches 'conv*'"),
        (["--plot", "x.gif"], "--plot x.gif: expected a name ending in .svg, .png, .pdf"),
        (["--plot", "x.svg", "-o", "x.svg"], "-o x.svg: expected a file other than the plot"),
        (["-o", "weights.safetensors"], "weights.safetensors exists: name another file with -o"),
        (["--validation", "0", "--data", "digits"], "--validation 0.0: expected at least one"),
        (["--lerning-rate", "1"], "--lerning-rate: unknown option"),
    ],
)
@pytest.mark.usefixtures("network")
def test_wrong_options_are_refused_in_one_line_and_nothing_is_written(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    assert main([*WORDS, *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.usefixtures("network")
def test_an_earlier_result_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights.sensitivity.json").write_text("{}")
    assert main(WORDS) == 2
    assert "weights.sensitivity.json exists: name another file with -o" in capsys.readouterr().err
    assert (tmp_path / "weights.sensitivity.json").read_text() == "{}"


@pytest.mark.usefixtures("network")
def test_code_named_by_the_config_beside_the_file_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("model: lenet300\ndata: sensitivity_data:data\n")
    assert main(["sensitivity", "weights.safetensors"]) == 2
    assert "refers to code, data sensitivity_data:data: to trust it, use --recipe" in capsys.readouterr().err


def test_the_weight_is_restored_if_measuring_fails() -> None:
    from makeweight_prune.sensitivity import measure

    weight: Any = torch.nn.Parameter(torch.randn(10, 10))
    before = weight.detach().clone()

    def fails() -> float:
        assert int((weight == 0).sum()) == 50
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        measure(weight, [0.5], fails)
    assert torch.equal(weight, before)
