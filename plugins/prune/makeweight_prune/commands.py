"""The verb `sensitivity`: each layer pruned alone, the network measured on the validation data."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from makeweight import MakeweightError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from makeweight.options import Options

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
        from makeweight.evaluate_command import configuration_of

        sparsities = _sparsities(arguments.sparsities)
        output, picture = _targets(arguments)
        if arguments.examples is not None and arguments.examples < 1:
            raise UsageError(f"--examples {arguments.examples}: expected 1 or more")
        options = configuration_of(arguments).options
        from makeweight.files import write_text, written_aside
        from makeweight.layers import layers, leaf_weight

        from .curves import as_json
        from .plot import plot
        from .sensitivity import measure

        model, measured, examples = _loaded(arguments.file, options, arguments.examples)
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


def _loaded(path: Path, options: Options, count: int | None) -> tuple[nn.Module, Callable[[], tuple[str, float]], int]:
    """The model with the file's weights, what measures it (the metric's name and value), and on how many examples."""
    from makeweight import models
    from makeweight.accelerators import new_accelerator
    from makeweight.batches import Batches
    from makeweight.evaluation import evaluate
    from makeweight.run import build_model, load_data
    from makeweight.task import Task

    models.check(options.model)
    task = Task.named(options.criterion, options.forward, options.metric)
    data = load_data(options, None)
    if data.validation is None:
        raise UsageError(f"--validation {options.validation}: expected more, it is what sensitivity is measured on")
    model: nn.Module = build_model(replace(options, weights=str(path)), data)
    accelerator = new_accelerator(options.precision)
    model.to(accelerator.device)
    examples = _drawn(data.validation, count)
    batches = Batches(examples, 500, accelerator.device, training=False)

    def measured() -> tuple[str, float]:
        metrics = evaluate(model, batches, task, accelerator)
        name = task.metric_name if task.metric_name in metrics else "loss"
        if not abs(metrics[name]) < float("inf"):
            raise MakeweightError(f"{path}: the {name} is {metrics[name]}: expected a number")
        return name, metrics[name]

    return model, measured, batches.examples


def _drawn(validation: Any, count: int | None) -> Any:
    """The validation data, or `count` of it drawn at random, always the same ones: a folder's come by class."""
    import torch
    from torch.utils.data import Subset

    from makeweight.batches import Tensors, as_dataset
    from makeweight.seeding import generator, purpose

    data: Any = as_dataset(validation, "validation")
    if count is None or count >= len(data):
        return data
    indices = torch.randperm(len(data), generator=generator(0, purpose("sensitivity")))[:count]
    return data.subset(indices) if isinstance(data, Tensors) else Subset(data, indices.tolist())


@contextmanager
def _progress(layers: int, each: int) -> Iterator[tuple[Callable[[str], None], Callable[[float], float]]]:
    """What to call when a layer is begun, and with each value: a bar on a terminal, else a line for each layer."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from makeweight.console import console

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
    from makeweight.console import console, print_table
    from makeweight.report import percent

    show = percent if name == "accuracy" else lambda value: f"{value:.5g}"
    header = ["layer", "weights", "as it is", *(f"{100 * sparsity:g} %" for sparsity in sparsities)]
    rows = [[layer, f"{each['weights']:,}", show(dense), *map(show, each["values"])] for layer, each in record.items()]
    print_table(console(), header, rows)
