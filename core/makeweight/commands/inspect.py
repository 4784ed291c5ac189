"""The verb `inspect`: prints the tensors of a safetensors file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..console import console, print_table
from .verb import add_limit, file_of_run


class Inspect:
    """Show the tensors of any safetensors file: shape, density, distinct values, entropy, bits, share of the file."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="an export, a run directory, or any safetensors file")
        add_limit(parser)

    def run(self, arguments: argparse.Namespace) -> None:
        from ..loading import open_any
        from .summary import tensor_facts, value_facts
        from .tables import percent, shape_text

        path = file_of_run(arguments.file)
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
