"""The verbs of the core: plugins, inspect, evaluate, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .console import console, print_table
from .errors import MakeweightError, UsageError
from .plugins import COMMANDS, distribution, installed

if TYPE_CHECKING:
    from .arguments import Configuration


class Plugins:
    """List the installed plugins, and the verbs that they bring."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        del parser

    def run(self, arguments: argparse.Namespace) -> None:
        verbs: dict[str, list[str]] = {}
        for verb, entry in installed(COMMANDS).items():
            verbs.setdefault(distribution(entry), []).append(verb)
        rows = [
            [name, distribution(entry), ", ".join(verbs.get(distribution(entry), [])),
             (entry.dist.metadata["Summary"] or "") if entry.dist else ""]
            for name, entry in installed().items()
        ]  # fmt: skip
        print_table(console(), ["plugin", "distribution", "verbs", "what it is"], rows, numbers=False)


class Inspect:
    """Show the tensors of any safetensors file: shape, density, distinct values, entropy, bits, share of the file."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="an export, or any safetensors file")

    def run(self, arguments: argparse.Namespace) -> None:
        from .artifact import Artifact, decode, is_export, load_any, read
        from .report import percent, shape_text
        from .summary import tensor_facts, value_facts

        path: Path = arguments.file
        artifact = decode(read(path), None, path) if is_export(path) else Artifact(load_any(path))
        size = path.stat().st_size
        rows = []
        for name, tensor in artifact.tensors.items():
            facts = tensor_facts(name, tensor, artifact.sizes.get(name)) | value_facts(tensor)
            rows.append([
                name, shape_text(facts["shape"]), facts["dtype"], percent(facts["density"]), f"{facts['distinct']:,}",
                f"{facts['entropy']:.2f}", f"{facts['bits_per_weight']:.2f}", f"{facts['bytes']:,}",
                percent(facts["bytes"] / size),
            ])  # fmt: skip
        header = ["tensor", "shape", "dtype", "density", "distinct", "entropy", "bits", "bytes", "share"]
        print_table(console(), header, rows)
        plugins = f", written with {', '.join(artifact.metadata)}" if artifact.metadata else ""
        print(f"{path}: {size:,} bytes, {len(rows)} tensors{plugins}")


class Evaluate:
    """Measure an export on its test data. Model and data are those of the run it lies in, unless they are named."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="an export, model.safetensors")
        parser.add_argument("--recipe", help="the recipe it was made with; config.yaml beside the file unless given")
        for name in ("model", "data", "data-dir"):
            parser.add_argument(f"--{name}", help="overrides the recipe's")

    def run(self, arguments: argparse.Namespace) -> None:
        configuration = self.configuration(arguments)
        from .accelerators import new_accelerator
        from .artifact import load
        from .batches import Batches, as_dataset
        from .evaluation import evaluate
        from .models import build, check
        from .report import percent
        from .run import load_data
        from .task import Task

        options = configuration.options
        check(options.model)
        task = Task.named(options.criterion, options.forward, options.metric)
        data = load_data(options, None)
        model = load(arguments.file, build(options.model, data.input_shape, data.num_classes))
        accelerator = new_accelerator(options.precision)
        batches = Batches(as_dataset(data.test, "test"), 500, accelerator.device, training=False)
        metrics = evaluate(model.to(accelerator.device), batches, task, accelerator)
        for name, value in metrics.items():
            print(f"{name} {percent(value) if name == 'accuracy' else f'{value:.5g}'}")
        print(f"{len(data.test):,} examples, {arguments.file.stat().st_size:,} bytes")

    def configuration(self, arguments: argparse.Namespace) -> Configuration:
        """The options under which the file was made. What lies beside it is a file from somewhere, not a command:
        code that it names is run only when its recipe is named on the command line.
        """
        from .arguments import parse

        beside = arguments.file.parent / "config.yaml"
        recipe = arguments.recipe or (str(beside) if beside.exists() else None)
        named = {"model": arguments.model, "data": arguments.data, "data-dir": arguments.data_dir}
        words = [word for name, value in named.items() if value is not None for word in (f"--{name}", value)]
        configuration = parse(["--recipe", recipe, *words] if recipe else words)
        if recipe and not arguments.recipe:
            options = configuration.options
            for key in ("model", "data", "criterion", "forward", "metric"):
                value = getattr(options, key) or ""
                if ":" in value and not value.startswith(("timm:", "imagefolder:")) and not named.get(key):
                    raise UsageError(f"{beside} names code, {key} {value}: to trust it, say --recipe {beside}")
        return configuration


class Report:
    """Write report.html of a finished run anew, and print its table."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", type=Path, help="a run directory")

    def run(self, arguments: argparse.Namespace) -> None:
        from .report import print_summary, read_run, write_report

        try:
            write_report(arguments.run)
            print_summary(console(), read_run(arguments.run)[0], arguments.run)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise MakeweightError(f"{arguments.run}: its summary, metrics or config is damaged: {reason}") from error
