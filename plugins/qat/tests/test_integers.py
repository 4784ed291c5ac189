"""The integer program: its operators are counted in the graph that onnxruntime optimises."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from makeweight import Trainer, load
from makeweight.data.by_name import load as load_data
from makeweight.files.write_programs import program, write_program
from makeweight.models.by_name import build
from makeweight.models.lenets import LeNet300
from makeweight_qat import Quantization

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def trained(model: nn.Module, data: Any, *plugins: object, **settings: Any) -> Trainer:
    run = Trainer(model, data, plugins=plugins, **{"epochs": 1, "batch_size": 4, "lr": 1e-3, **settings})
    run.journal.console.quiet = True
    run.fit()
    run.model.eval()
    return run


def images(size: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % 10


def session(path: Path) -> tuple[Any, Counter[str]]:
    """A session, and the operators of its optimised graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_name("optimised.onnx"))
    made = onnxruntime.InferenceSession(path, options)
    return made, Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.slow  # large networks are exported
@pytest.mark.parametrize(
    ("name", "size", "convolutions", "others"),
    [
        ("resnet18", 64, 20, {"QLinearAdd": 8, "QGemm": 1}),
        ("mobilenet_v3_small", 64, 52, {"QLinearAdd": 6, "QGemm": 2}),
        ("squeezenet1_1", 64, 26, {"QLinearConcat": 8}),
    ],
)
def test_every_convolution_runs_on_integers(
    name: str, size: int, convolutions: int, others: dict[str, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, data = build(name, (3, size, size), 10), images(size)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # two steps give statistics with which images still differ in the end
    run = trained(model, data, Quantization())
    write_program(run, "onnx", tmp_path)
    made, operators = session(tmp_path / "model.onnx")
    assert operators["QLinearConv"] == convolutions
    assert not {"Conv", "FusedConv", "BatchNormalization", "Gemm", "MatMul"} & set(operators)
    assert {kind: operators[kind] for kind in others} == others
    with torch.no_grad():
        computed = program(run)(data[0])
    given_out = torch.from_numpy(made.run(None, {"input": data[0].numpy()})[0])
    # In a network of random weights one rounding to the other side spreads; the images themselves differ by more.
    largest = float(computed.abs().max())
    assert float((given_out - computed).abs().mean()) <= 0.02 * largest
    assert float(computed.std(0).mean()) >= 0.02 * largest
    run.export(tmp_path / "model.safetensors")
    restored = load(tmp_path / "model.safetensors", run.fresh_model()).eval()
    with torch.no_grad():
        assert torch.equal(restored(data[0]), run.model(data[0]))


@pytest.mark.slow  # exports ONNX models and runs them
@pytest.mark.parametrize(
    "options",
    [{}, {"weights": 4}, {"weights": 4, "activations": 5, "ranges": "learned"}, {"activations": 0}, {"weights": 0}],
    ids=str,
)
def test_programs_agree_with_the_trained_model(options: dict[str, Any], tmp_path: Path) -> None:
    data = load_data("digits")
    x = torch.stack([data.test[index][0] for index in range(len(data.test))])
    torch.manual_seed(0)
    run = trained(LeNet300((1, 8, 8), 10), data.train, Quantization(**options), epochs=3, batch_size=32, lr=0.03)
    for form in ("onnx", "pt2"):
        write_program(run, form, tmp_path)
    made, operators = session(tmp_path / "model.onnx")
    with torch.no_grad():
        trained_says = run.model(x)
        others = [torch.from_numpy(made.run(None, {"input": x.numpy()})[0]),
                  torch.export.load(tmp_path / "model.pt2").module()(x)]  # fmt: skip
    for other in others:
        assert float((other.argmax(1) == trained_says.argmax(1)).float().mean()) >= 0.997  # one of 360
    if all(options.get(option, 8) for option in ("weights", "activations")):
        assert operators["QGemm"] == 3


def test_a_folded_batch_norm_equals_the_batch_norm() -> None:
    """With positive, negative and zero factors, and a bias before it; compared where nothing is rounded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    norm: Any = model[1]
    nn.init.uniform_(norm.weight, -1, 1)
    nn.init.zeros_(norm.weight[3:4])
    run = trained(model, images(8, 64), Quantization(), epochs=3, batch_size=16)
    trained_norm: Any = run.model.get_submodule("1")
    trained_norm.weight.data[3] = 0
    x = images(8, 64)[0]
    copied = program(run)
    assert isinstance(copied[1], nn.Identity)  # type: ignore[index]
    with torch.no_grad():
        expected = run.model(x)
        difference = (copied(x) - expected).abs()
    assert float(difference.mean()) < 1e-3 * float(expected.abs().mean())


def test_fewer_than_8_bits_are_clipped_as_in_training(tmp_path: Path) -> None:
    run = trained(LeNet300((3, 8, 8), 10), images(8, 64), Quantization(activations=2), batch_size=16)
    write_program(run, "onnx", tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert Counter(node.op_type for node in graph.node)["Clip"] == 4  # one says again what a flattened tensor is
    x = 10 * images(8, 64)[0]  # beyond every range
    given_out = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        expected = run.model(x)
    # Of four levels some fall to the other side of a half, by the rounding of a bias.
    assert float((torch.from_numpy(given_out) - expected).abs().mean()) < 0.02 * float(expected.abs().max())


class Odd(nn.Module):
    """A channel with a bias and zero weights, a layer whose input is zero, and a grouped transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.unfed, self.wide = nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.last = nn.Linear(8, 10)
        with torch.no_grad():
            self.second.weight[3] = 0
            self.second.weight[4] *= 1e-12
            self.second.bias.fill_(1.5)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        x = x + torch.relu(self.unfed(x * 0))
        logits: torch.Tensor = self.last(self.wide(x).mean((2, 3)))
        return logits


def test_biases_of_channels_with_zero_weights_fit_into_32_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = trained(Odd(), images(8, 64), Quantization(), batch_size=16, lr=1e-9)
    write_program(run, "onnx", tmp_path)
    x = images(8, 64)[0]
    given_out = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        expected = run.model(x)
    assert float((torch.from_numpy(given_out) - expected).abs().max()) < 1e-2 * float(expected.abs().max())
