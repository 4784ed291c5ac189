"""The verb `evaluate`: a file that a run left, measured again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import console, print_table
from ..errors import MakeweightError, UsageError
from .verb import add_limit

if TYPE_CHECKING:
    from torch import nn

    from ..data.batches import Batches
    from .comparison import Measured
    from .session import Session

SECONDS_OF_TWO = 60.0
"""that a program may take for its first two examples"""


class Evaluate:
    """Measure an export on its test data: accuracy, multiply-accumulates, and latency beside the plain float32 model.

    Model and data are those of the run it lies in; every option of training that is given overrides that run's.
    """

    takes_options = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="an export of safetensors, or a model.onnx")
        parser.add_argument("--recipe", help="the recipe it was made with; config.yaml beside the file unless given")
        add_limit(parser)
        parser.add_argument("--no-latency", action="store_true", help="do not time anything")

    def run(self, arguments: argparse.Namespace) -> None:
        path: Path = arguments.file
        if path.suffix == ".pt2":
            raise UsageError(f"{path} is a program for others to run: expected a safetensors file or a model.onnx")
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file")
        import torch

        from .comparison import SIZES, compare
        from .session import Session

        if path.suffix == ".onnx":
            from ..files.programs import check_installed

            check_installed(["onnx"])
        session = Session.of_file(arguments)
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
    """The original network and a file's, both run by onnxruntime."""
    from ..files.onnx_model import SECONDS, OnnxModel
    from ..files.programs import explained, first_two, onnx_bytes

    examples = first_two(next(test.in_order()))
    with explained("the plain model"):
        plain = OnnxModel(onnx_bytes(session.original().eval(), examples))
    program = OnnxModel(path, SECONDS_OF_TWO)
    if isinstance(examples, tuple):
        expected, given = (list(model(*examples).shape) for model in (plain, program))
        if given != expected:
            raise MakeweightError(f"{path} gives a tensor of shape {given}, the model {expected}: it is another one")
    program.seconds = SECONDS
    return plain, {path.name: program}


def _ways(path: Path, session: Session, limit: int | None) -> dict[str, nn.Module]:
    """The model read back from an export, and the further ways to run it that the plugins in the file offer."""
    from ..discovery import load_class
    from ..loading import attach, load_plain
    from ..plugins import Plugins

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
    from .tables import percent

    return percent(value) if metric == "accuracy" else "" if value is None else f"{value:.5g}"
