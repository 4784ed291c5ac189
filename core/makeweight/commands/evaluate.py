"""The verb `evaluate`: measures a model file of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import console, print_table
from ..errors import MakeweightError, UsageError
from .verb import add_limit, file_of_run

if TYPE_CHECKING:
    from torch import nn

    from ..data.batches import Batches
    from .comparison import Measured
    from .session import Session

SECONDS_OF_TWO = 60.0
"""time limit in seconds for the first two examples of a program"""


class Evaluate:
    """Measure an export on its test data: accuracy, multiply-accumulates, and latency relative to plain float32.

    Model and data are those of the run directory that contains the file; options of training override them.
    """

    takes_options = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="a run directory, or its model.safetensors or model.onnx")
        parser.add_argument("--recipe", help="recipe of the run; by default config.yaml in the folder of the file")
        add_limit(parser)
        parser.add_argument("--no-latency", action="store_true", help="do not measure latency")

    def run(self, arguments: argparse.Namespace) -> None:
        path = arguments.file = file_of_run(arguments.file)
        if path.suffix == ".pt2":
            raise UsageError(f"{path} is a torch.export program: expected a safetensors file or a model.onnx")
        if not path.is_file():
            raise UsageError(f"{path}: file not found")
        import torch

        from .comparison import SIZES, compare
        from .session import Session

        if path.suffix == ".onnx":
            from ..files.write_programs import check_installed

            check_installed(["onnx"])
        session = Session.of_file(arguments)
        session.settle()
        batches = {size: session.batches(session.data.test, size)
                   for size in SIZES[: 1 if arguments.no_latency else None]}  # fmt: skip
        if path.suffix == ".onnx":
            plain, ways = _onnx_ways(path, session, batches[SIZES[0]])
        else:
            plain, ways = session.original(), _ways(path, session, arguments.max_bytes)
        print_measured(compare(plain, ways, batches, session.task, session.accelerator))
        device = session.accelerator.device.type
        threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
        examples, size = batches[SIZES[0]].examples, path.stat().st_size
        print(f"{examples:,} examples, {size:,} bytes; on {device}{threads}")


def _onnx_ways(path: Path, session: Session, test: Batches) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The original network and the program of a file by name, both run by onnxruntime.

    Raises MakeweightError if the output shapes differ.
    """
    from ..files.run_onnx import SECONDS, OnnxModel
    from ..files.write_programs import explained, first_two, onnx_bytes

    examples = first_two(next(test.in_order()))
    with explained("the plain model"):
        plain = OnnxModel(onnx_bytes(session.original().eval(), examples))
    program = OnnxModel(path, SECONDS_OF_TWO)
    if isinstance(examples, tuple):
        expected, given = (list(model(*examples).shape) for model in (plain, program))
        if given != expected:
            raise MakeweightError(f"{path} returns a tensor of shape {given}: expected {expected}, that of the model")
    program.seconds = SECONDS
    return plain, {path.name: program}


def _ways(path: Path, session: Session, limit: int | None) -> dict[str, nn.Module]:
    """The model of an export and the variants that plugins return from `on_evaluate`, by name."""
    from ..discovery import load_class
    from ..loading import attach, load_plain
    from ..plugin_manager import Plugins

    model = session.original()
    artifact = load_plain(path, model, limit)
    attach(artifact, model, path)
    ways = {path.name: model}
    others = {name: load_class(name)() for name in artifact.metadata if name not in session.plugins}
    for name, plugin in (session.plugins | others).items():
        found = Plugins({name: plugin}).call(name, "on_evaluate", artifact=artifact, model=model)
        ways |= found or {}
    return ways


def print_measured(rows: Sequence[Measured]) -> None:
    """Print a table with the metrics and the costs of each variant of the model."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    sizes = list(rows[0].latency)
    header = ["model", *metrics, "MACs"]
    for size in sizes:
        header += [f"ms ({size})", "faster"]
    table = []
    for row in rows:
        line = [row.name, *(_shown(name, row.metrics.get(name)) for name in metrics)]
        line.append(f"{row.multiply_accumulates:,.0f}" if row.multiply_accumulates else "")
        for size in sizes:
            seconds = row.latency[size]
            spread = f"±{50 * seconds.spread / seconds.median:.0f}%"  # half the interquartile range
            line += [f"{1e3 * seconds.median:.3g}{spread}", f"{row.times_as_fast[size]:.2f}"]
        table.append(line)
    print_table(console(), header, table)


def _shown(metric: str, value: float | None) -> str:
    from .tables import percent

    return percent(value) if metric == "accuracy" else "" if value is None else f"{value:.4g}"
