"""The verbs of the core that look at files and runs: plugins, inspect, report. `evaluate` has a file of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import console, print_table
from .plugins import COMMANDS, distribution, installed


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add the option of verbs that decode a file: how many bytes its tensors may take."""
    parser.add_argument(
        "--max-bytes", type=int, metavar="N",
        help="that the file's decoded tensors may take; 1 GiB or 64 times the file's size unless given",
    )  # fmt: skip


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
        add_limit(parser)

    def run(self, arguments: argparse.Namespace) -> None:
        from .artifact import open_any
        from .report import percent, shape_text
        from .summary import tensor_facts, value_facts

        path: Path = arguments.file
        artifact = open_any(path, arguments.max_bytes)
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
        console().print(f"{path}: {size:,} bytes, {len(rows)} tensors{plugins}")


class Report:
    """Write report.html of a finished run anew, and print its table."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", type=Path, help="a run directory")

    def run(self, arguments: argparse.Namespace) -> None:
        from .finished import read_run
        from .report import print_summary, write_report

        write_report(arguments.run)
        print_summary(console(), read_run(arguments.run)[0], arguments.run)
