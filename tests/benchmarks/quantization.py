"""What quantization costs in training and gains in use.

`steps`: the time of a training step with weights and activations quantized over that of the plain trainer, in turn in
this one process with one thread, medians over the rounds. `speed`: ResNet-18 as float32 and as int8 in onnxruntime,
in turn, two threads, and its integer operators counted in the optimised graph. `accuracy`: LeNet-5 on MNIST as
float32, and what 3 more epochs make of it with 8 bits, with weights of 4, and with pruning and Huffman codes; files
read back, and how many of the test images the ONNX file answers as they do. Run it with
`python tests/benchmarks/quantization.py [steps|speed|accuracy]`; accuracy needs MAKEWEIGHT_DATA, or downloads MNIST.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from makeweight import Data, hookimpl, load
from makeweight.data.by_name import load as load_data
from makeweight.discovery import load_class
from makeweight.files.write_programs import write_program
from makeweight.models.by_name import build
from makeweight.trainer import Trainer

PRUNED = {"sparsity": 0.9, "scope": "global", "every": 50}


def data(shape: tuple[int, int, int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *shape, generator=generator), torch.randint(0, 10, (count,), generator=generator)


@dataclass(eq=False)
class Clock:
    """The processor time of each step: what else the machine does is not counted."""

    seconds: list[float] = field(default_factory=list)

    @hookimpl(wrapper=True)
    def on_batch(self) -> Generator[None, Any, Any]:
        begun = process_time()
        loss = yield
        self.seconds.append(process_time() - begun)
        return loss


def step_time(name: str, shape: tuple[int, int, int], steps: int, **plugins: dict[str, Any]) -> Callable[[], float]:
    """Runs one epoch: milliseconds a step at batch 128, the mean: not every step does the same."""
    examples = data(shape, 128 * steps)

    def contestant() -> float:
        clock = Clock()
        instances = {plugin: load_class(plugin)(**options) for plugin, options in plugins.items()}
        trainer = Trainer(build(name, shape, 10), examples, plugins={"clock": clock, **instances}, batch_size=128,
                          epochs=1)  # fmt: skip
        trainer.journal.console.quiet = True
        trainer.fit()
        return statistics.fmean(clock.seconds[1:]) * 1e3

    return contestant


def in_turn(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The contestants' figures, one a round; a first round warms up and is thrown away."""
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, contestant in contestants.items():
            figure = contestant()
            if number:
                figures[name].append(figure)
    return figures


def steps(rounds: int = 5) -> None:
    torch.set_num_threads(1)
    for name, shape, count in (("lenet300", (1, 28, 28), 40), ("resnet20", (3, 32, 32), 3)):
        contestants = {"plain": step_time(name, shape, count)}
        for ranges in ("moving", "learned"):
            contestants[f"qat, {ranges}"] = step_time(name, shape, count, qat={"ranges": ranges})
        figures = in_turn(contestants, rounds)
        for contestant, values in figures.items():
            ratio = statistics.median(a / b for a, b in zip(values, figures["plain"], strict=True))
            print(f"{name:9} {contestant:14} {statistics.median(values):8.2f} ms a step, {ratio:.2f} × plain")


def speed(rounds: int = 15) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    for size in (96, 224):
        with tempfile.TemporaryDirectory() as folder:
            paths = {kind: export(kind, size, Path(folder)) for kind in ("float32", "int8")}
            print(f"{size}², int8 graph:", dict(operators(paths["int8"])))
            sessions = {kind: onnxruntime.InferenceSession(path, options) for kind, path in paths.items()}
        for batch in (1, 8):
            pixels = data((3, size, size), batch)[0].numpy()
            figures = in_turn({kind: timed(session, pixels) for kind, session in sessions.items()}, rounds)
            ratio = statistics.median(a / b for a, b in zip(figures["float32"], figures["int8"], strict=True))
            shown = ", ".join(f"{kind} {statistics.median(values):.1f} ms" for kind, values in figures.items())
            print(f"batch {batch}, {size}²: {shown}, {ratio:.2f} times as fast")


def timed(session: Any, pixels: Any) -> Callable[[], float]:
    def run() -> float:
        start = perf_counter()
        session.run(None, {"input": pixels})
        return (perf_counter() - start) * 1e3

    return run


def export(kind: str, size: int, folder: Path) -> Path:
    """ResNet-18 with random weights and two training steps, as model.onnx."""
    plugins = {"qat": load_class("qat")()} if kind == "int8" else {}
    model = build("resnet18", (3, size, size), 10)
    trainer = Trainer(model, data((3, size, size), 4), plugins=plugins, batch_size=2, epochs=1)
    trainer.journal.console.quiet = True
    trainer.fit()
    (folder / kind).mkdir()
    write_program(trainer, "onnx", folder / kind)
    return folder / kind / "model.onnx"


def operators(path: Path) -> Counter[str]:
    """How often each operator stands in the graph that onnxruntime makes of a file."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_name("optimised.onnx"))
    onnxruntime.InferenceSession(path, options)
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "int8": {"qat": {}},
    "weights of 4 bits": {"qat": {"weights": 4, "ranges": "learned"}},
    "int8, huffman": {"qat": {}, "huffman": {}},
    "pruned, huffman": {"prune": PRUNED, "huffman": {}},
    "int8, pruned, huffman": {"prune": PRUNED, "qat": {}, "huffman": {}},
}


def accuracy() -> None:
    torch.set_num_threads(1)
    mnist = load_data("mnist", augment="shift", validation=5_000)
    x, y = mnist.test.take(torch.arange(len(mnist.test)))
    dense = fit(build("lenet5", (1, 28, 28), 10, 0), mnist, epochs=15, lr=0.02)
    with tempfile.TemporaryDirectory() as folder:
        report("float32", dense, Path(folder), x, y)
        for name, plugins in ARMS.items():
            model = build("lenet5", (1, 28, 28), 10, 0)
            model.load_state_dict(dense.model.state_dict())
            instances = {plugin: load_class(plugin)(**options) for plugin, options in plugins.items()}
            report(name, fit(model, mnist, plugins=instances, epochs=3, lr=0.005), Path(folder), x, y)


def fit(model: torch.nn.Module, mnist: Data, **options: Any) -> Trainer:
    trainer = Trainer(model, mnist.train, batch_size=128, weight_decay=5e-4, warmup=0.5, channels_last=True, **options)
    trainer.journal.console.quiet = True
    trainer.fit()
    return trainer


def report(name: str, trainer: Trainer, folder: Path, x: torch.Tensor, y: torch.Tensor) -> None:
    """The sizes and the accuracies of both files, read back, and on how many images they agree."""
    import onnxruntime

    trainer.export(folder / "model.safetensors")
    write_program(trainer, "onnx", folder)
    restored = load(folder / "model.safetensors", trainer.fresh_model()).eval()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    with torch.no_grad():
        trained = torch.cat([restored(part).argmax(1) for part in x.split(1000)])
    program = torch.cat([torch.from_numpy(session.run(None, {"input": part.numpy()})[0]).argmax(1)
                         for part in x.split(1000)])  # fmt: skip
    sizes = [(folder / file).stat().st_size for file in ("model.safetensors", "model.onnx")]
    right = [float((answers == y).double().mean()) for answers in (trained, program)]
    same = int((trained == program).sum())
    print(f"{name:22} {sizes[0]:9,} bytes {right[0]:.2%}   model.onnx {sizes[1]:9,} bytes {right[1]:.2%}, "
          f"{same:,} of {len(y):,} answers the same", flush=True)  # fmt: skip


if __name__ == "__main__":
    for part in sys.argv[1:] or ("steps", "speed", "accuracy"):
        {"steps": steps, "speed": speed, "accuracy": accuracy}[part]()
