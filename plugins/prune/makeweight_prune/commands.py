"""The verb `sensitivity`: each layer pruned alone, the network measured on the validation data."""

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
    """Prune each layer of a network alone, to several sparsities, and measure the network on the validation data.

    Writes a JSON file, which --prune.sensitivity takes, and a picture beside it. Model and data are those of the run
    that the file lies in; every option of training that is given overrides that run's. The test data is not looked at.
    """

    takes_options = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="an export, or any safetensors file of the model's weights")
        parser.add_argument("--recipe", help="the recipe it was made with; config.yaml beside the file unless given")
        parser.add_argument("--layers", default="*", metavar="GLOB", help="every Linear and Conv unless given")
        parser.add_argument("--sparsities", default=SPARSITIES, metavar="LIST", help=f"{SPARSITIES} unless given")
        parser.add_argument("--examples", type=int, metavar="N", help="measure on N drawn at random, not on all")
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="<file>.sensitivity.json unless given")
        parser.add_argument("--plot", type=Path, metavar="FILE", help="an .svg, .png or .pdf; .svg beside unless given")

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
        write_text(output, as_json(options.model, options.data, name, dense, examples, record))
        with written_aside(picture) as aside:
            title = f"{options.model} on {options.data}, one layer pruned at a time"
            plot(aside, picture.suffix[1:], title, name, dense, record)
        _print(record, sparsities, name, dense)
        print(f"{name} on {examples:,} validation examples; see {output} and {picture}")


def _sparsities(given: str) -> list[float]:
    """The numbers of a list with commas, ascending. Raises UsageError."""
    try:
        numbers = sorted({float(word) for word in given.split(",")})
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < 1 for number in numbers):
        raise UsageError(f"--sparsities {given}: expected numbers between 0 and 1, as 0.5,0.9,0.95")
    return numbers


def _targets(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Where the numbers and the picture go. Raises UsageError for a file that is there unless it was named."""
    stem = arguments.file.name.removesuffix(".safetensors")
    output: Path = arguments.output or arguments.file.with_name(f"{stem}.sensitivity.json")
    picture: Path = arguments.plot or output.with_suffix(".svg")
    if picture.suffix not in PICTURES:
        raise UsageError(f"--plot {picture}: expected a name that ends in {', '.join(PICTURES)}")
    if output == picture:
        raise UsageError(f"-o {output}: expected another file than the picture's")
    for path, given, option in (
        (output, arguments.output, "-o"),
        (picture, arguments.plot or arguments.output, "--plot"),
    ):
        if path.exists() and (not given or path.samefile(arguments.file)):
            raise UsageError(f"{path} exists: name another with {option}")
    return output, picture


@contextmanager
def _progress(layers: int, each: int) -> Iterator[tuple[Callable[[str], None], Callable[[float], float]]]:
    """What to call when a layer is begun, and with each value: a bar on a terminal, else a line for each layer."""
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
    """The table: layers by sparsities, and the metric as it is."""
    from makeweight.plugin import console, percent, print_table

    show = percent if name == "accuracy" else lambda value: f"{value:.5g}"
    header = ["layer", "weights", "as it is", *(f"{100 * sparsity:g} %" for sparsity in sparsities)]
    rows = [[layer, f"{each['weights']:,}", show(dense), *map(show, each["values"])] for layer, each in record.items()]
    print_table(console(), header, rows)
