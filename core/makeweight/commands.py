"""The verbs of the core that look at files and runs: plugins, inspect, report. `evaluate` has a file of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import console, print_table
from .errors import MakeweightError
from .plugins import COMMANDS, distribution, installed


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
        from .artifact import open_any
        from .report import percent, shape_text
        from .summary import tensor_facts, value_facts

        path: Path = arguments.file
        artifact = open_any(path)
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
