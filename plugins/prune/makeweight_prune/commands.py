"""The verb `sensitivity`: prunes one layer at a time and measures the network on the validation data."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from makeweight import UsageError

SPARSITIES = "0.3,0.5,0.7,0.8,0.9,0.95,0.97,0.98,0.99,0.995"
PICTURES = (".svg", ".png", ".pdf")


class Sensitivity:
    """Prune each layer of a network alone to several sparsities and measure the network on the validation data.

    Writes a JSON file for --prune.sensitivity, and a plot next to it. Model, data and options are those of config.yaml
    next to the file; options on the command line override them. The test data is never read.
    """

    takes_options = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="an export, or any safetensors file with the model's weights")
        parser.add_argument("--recipe", help="recipe of the network; default config.yaml next to the file")
        parser.add_argument(
            "--layers", default="*", metavar="GLOB", help="layers to measure; default every Linear and Conv layer"
        )
        parser.add_argument("--sparsities", default=SPARSITIES, metavar="LIST", help=f"default {SPARSITIES}")
        parser.add_argument("--examples", type=int, metavar="N", help="measure on N random examples; default all")
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default <file>.sensitivity.json")
        parser.add_argument(
            "--plot", type=Path, metavar="FILE", help=".svg, .png or .pdf; default .svg next to the output"
        )

    def run(self, arguments: argparse.Namespace) -> None:
        sparsities = _sparsities(arguments.sparsities)
        output, picture = _targets(arguments)
        if arguments.examples is not None and arguments.examples < 1:
            raise UsageError(f"--examples {arguments.examples}: expected 1 or more")
        from makeweight.plugin import Session, drawn, layers, leaf_weight, write_text, written_aside

        from .curves import as_json
        from .plot import plot
        from .sensitivity import measure

        session = Session.of_file(arguments)
        options = session.options
        model = session.network(str(arguments.file)).to(session.accelerator.device)
        batches = session.batches(drawn(session.validation, arguments.examples, 0))
        examples = batches.examples

        def measured() -> tuple[str, float]:
            return session.measure(model, batches)

        found = layers(model, arguments.layers)
        name, dense = measured()
        record: dict[str, Any] = {}
        with _progress(len(found), len(sparsities)) as (begin, done):
            for layer, module in found.items():
                begin(layer)
                values = measure(leaf_weight(module), sparsities, lambda: done(measured()[1]))
                record[layer] = {"weights": leaf_weight(module).numel(), "sparsity": sparsities, "values": values}
        better = session.task.higher_is_better(name)
        write_text(output, as_json(options.model, options.data, name, dense, examples, record, better))
        with written_aside(picture) as aside:
            title = f"{options.model} on {options.data}, one layer pruned at a time"
            plot(aside, picture.suffix[1:], title, name, dense, record)
        _print(record, sparsities, name, dense)
        print(f"{name} on {examples:,} validation examples; written to {output} and {picture}")


def _sparsities(given: str) -> list[float]:
    """Parse numbers separated by commas, ascending. Raises UsageError unless all lie between 0 and 1."""
    try:
        numbers = sorted({float(word) for word in given.split(",")})
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < 1 for number in numbers):
        raise UsageError(f"--sparsities {given}: expected numbers between 0 and 1, for example 0.5,0.9,0.95")
    return numbers


def _targets(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Paths of the JSON file and the plot. Raises UsageError if a default path exists."""
    stem = arguments.file.name.removesuffix(".safetensors")
    output: Path = arguments.output or arguments.file.with_name(f"{stem}.sensitivity.json")
    picture: Path = arguments.plot or output.with_suffix(".svg")
    if picture.suffix not in PICTURES:
        raise UsageError(f"--plot {picture}: expected a name ending in {', '.join(PICTURES)}")
    if output == picture:
        raise UsageError(f"-o {output}: expected a file other than the plot")
    for path, given, option in (
        (output, arguments.output, "-o"),
        (picture, arguments.plot or arguments.output, "--plot"),
    ):
        if path.exists() and (not given or path.samefile(arguments.file)):
            raise UsageError(f"{path} exists: name another file with {option}")
    return output, picture


@contextmanager
def _progress(layers: int, each: int) -> Iterator[tuple[Callable[[str], None], Callable[[float], float]]]:
    """Yield (call at the start of a layer, call with each value): a bar on a terminal, otherwise one line per layer."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from makeweight.plugin import console

    target = console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=target, transient=True, disable=not target.is_terminal) as bar:
        task = bar.add_task("", total=layers * each)

        def begin(layer: str) -> None:
            bar.update(task, description=layer)
            if not target.is_terminal:
                target.print(f"measuring {layer}")

        def done(value: float) -> float:
            bar.advance(task)
            return value

        yield begin, done


def _print(record: Mapping[str, Any], sparsities: list[float], name: str, dense: float) -> None:
    """Print a table of the metric: a row per layer, a column per sparsity."""
    from makeweight.plugin import console, percent, print_table

    show = percent if name == "accuracy" else lambda value: f"{value:.5g}"
    header = ["layer", "weights", "not pruned", *(f"{100 * sparsity:g} %" for sparsity in sparsities)]
    rows = [[layer, f"{each['weights']:,}", show(dense), *map(show, each["values"])] for layer, each in record.items()]
    print_table(console(), header, rows)
