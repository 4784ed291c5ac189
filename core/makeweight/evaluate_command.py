"""The verb `evaluate`: a file that a run left, measured again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .console import console, print_table
from .errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from .arguments import Configuration
    from .comparison import Measured


class Evaluate:
    """Measure an export on its test data: accuracy, multiply-accumulates, and latency beside the plain float32 model.

    Model and data are those of the run it lies in; every option of training that is given overrides that run's.
    """

    takes_options = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="an export of safetensors, or a model.onnx")
        parser.add_argument("--recipe", help="the recipe it was made with; config.yaml beside the file unless given")
        parser.add_argument("--no-latency", action="store_true", help="do not time anything")

    def run(self, arguments: argparse.Namespace) -> None:
        path: Path = arguments.file
        if path.suffix == ".pt2":
            raise UsageError(f"{path} is a program for others to run: expected a safetensors file or a model.onnx")
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file")
        configuration = configuration_of(arguments)
        import torch

        from .accelerators import new_accelerator
        from .batches import Batches, as_dataset
        from .comparison import SIZES, compare
        from .models import build, check
        from .onnx_model import OnnxModel
        from .programs import check_installed, explained, first_two, onnx_bytes
        from .run import load_data
        from .task import Task

        options = configuration.options
        check(options.model)
        task = Task.named(options.criterion, options.forward, options.metric)
        data = load_data(options, None)
        plain, model = (build(options.model, data.input_shape, data.num_classes) for _ in range(2))
        accelerator = new_accelerator(options.precision)
        test = as_dataset(data.test, "test")
        batches = {size: Batches(test, size, accelerator.device, training=False, channels_last=options.channels_last)
                   for size in SIZES[: 1 if arguments.no_latency else None]}  # fmt: skip
        if path.suffix == ".onnx":  # beside the plain model as onnxruntime runs it
            check_installed(["onnx"])
            with explained("the plain model"):
                plain = OnnxModel(onnx_bytes(plain.eval(), first_two(next(batches[SIZES[0]].in_order()))))
            ways: dict[str, nn.Module] = {path.name: OnnxModel(path)}
        else:
            ways = _ways(path, configuration, model)
        print_measured(compare(plain, ways, batches, task, accelerator))
        threads = f", {torch.get_num_threads()} threads" if accelerator.device.type == "cpu" else ""
        examples, size = batches[SIZES[0]].examples, path.stat().st_size
        print(f"{examples:,} examples, {size:,} bytes; on {accelerator.device.type}{threads}")


def configuration_of(arguments: argparse.Namespace) -> Configuration:
    """The options under which `arguments.file` was made, those of the words in `arguments.options` before all.

    What lies beside the file is a file from somewhere, not a command: code that it names is run only when its recipe
    is named on the command line.
    """
    from .arguments import parse

    beside = arguments.file.parent / "config.yaml"
    recipe = arguments.recipe or (str(beside) if beside.exists() else None)
    words = arguments.options
    configuration = parse(["--recipe", recipe, *words] if recipe else words)
    if recipe and not arguments.recipe:
        said = {word.partition("=")[0] for word in words}
        for key in ("model", "data", "criterion", "forward", "metric"):
            value = getattr(configuration.options, key) or ""
            if ":" in value and not value.startswith(("timm:", "imagefolder:")) and f"--{key}" not in said:
                raise UsageError(f"{beside} names code, {key} {value}: to trust it, say --recipe {beside}")
    return configuration


def _ways(path: Path, configuration: Configuration, model: nn.Module) -> dict[str, nn.Module]:
    """The model read back from an export, and the further ways to run it that the plugins in the file offer."""
    from .artifact import decode, read
    from .plugins import Plugins, load_class
    from .state import restore

    artifact = decode(read(path), model, path)
    restore(model, artifact.tensors, str(path))
    ways = {path.name: model}
    others = {name: load_class(name)() for name in artifact.metadata if name not in configuration.plugins}
    plugins = Plugins(configuration.plugins | others)
    for name in plugins.by_name:
        ways |= plugins.call(name, "on_evaluate", artifact=artifact, model=model) or {}
    return ways


def print_measured(rows: Sequence[Measured]) -> None:
    """One table: what each way to run the model gives, and what it takes."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    sizes = list(rows[0].latency)
    header = ["model", *metrics, "multiply-accumulates"]
    for size in sizes:
        header += [f"ms for {size}", "spread", "times as fast"]
    table = []
    for row in rows:
        line = [row.name, *(_shown(name, row.metrics.get(name)) for name in metrics)]
        line.append(f"{row.multiply_accumulates:,.0f}" if row.multiply_accumulates else "")
        for size in sizes:
            seconds = row.latency[size]
            line += [f"{1e3 * seconds.median:.3g}", f"{1e3 * seconds.spread:.2g}", f"{row.times_as_fast[size]:.2f}"]
        table.append(line)
    print_table(console(), header, table)


def _shown(metric: str, value: float | None) -> str:
    from .report import percent

    return percent(value) if metric == "accuracy" else "" if value is None else f"{value:.5g}"
