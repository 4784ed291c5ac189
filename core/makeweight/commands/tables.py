"""The tables that a run prints: its plan, its end, and the advice below it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..console import print_table
from ..discovery import COMMANDS, distribution, installed, load_class
from ..errors import UsageError

if TYPE_CHECKING:
    from ..run import Run


HARDLY_SMALLER, REPETITIVE = 1.1, 0.9
"""a file at most so many times smaller than dense float32 is advised on, if coding can bring it below this share"""


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def shape_text(shape: list[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def sizes(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of sizes: header and rows. The metric is shown in percent where it is the accuracy."""
    export = summary["export"]
    metric = summary["metric"]
    show = percent if metric == "accuracy" else lambda value: "" if value is None else f"{value:.5g}"
    rows = [["dense float32", f"{export['dense_bytes']:,}", "1.0", show(summary.get(metric))]]
    for name, size in export["controls"].items():
        rows.append([f"dense, {name}", f"{size:,}", f"{export['dense_bytes'] / size:.1f}", show(summary.get(metric))])
    rows.append([export["path"], f"{export['bytes']:,}", f"{export['ratio']:.1f}", show(export.get(metric))])
    return ["file", "bytes", "times smaller", f"test {metric}"], rows


def tensor_rows(tensors: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The table of tensors: header and rows."""
    rows = [
        [row["name"], shape_text(row["shape"]), row["dtype"], percent(row["density"]),
         f"{row['bits_per_weight']:.2f}", f"{row['bytes']:,}"]
        for row in tensors
    ]  # fmt: skip
    return ["tensor", "shape", "dtype", "density", "bits per weight", "bytes"], rows


def print_summary(console: Console, summary: dict[str, Any], out: Path) -> None:
    """The table at the end of a run, and what would make its file smaller."""
    header, rows = sizes(summary)
    print_table(console, header, rows)
    console.print(f"{summary['steps']} steps in {summary['seconds']:.0f} s; see {out}/report.html")
    if line := advice(summary):
        console.print(line)


def advice(summary: dict[str, Any]) -> str:
    """Which codecs to add where an export stores zeros and repeats in full; empty where there is nothing to say."""
    export = summary["export"]
    nonzero = sum(row["density"] * row["bytes"] for row in export["tensors"])
    coded = min(export["controls"].values(), default=nonzero)  # a large file has no control
    if export["ratio"] >= HARDLY_SMALLER or coded >= REPETITIVE * export["bytes"]:
        return ""
    codecs = installed_codecs()
    if not codecs or codecs & set(summary["plugins"]):
        return ""
    homes = {distribution(installed()[name]) for name in codecs}
    verbs = [f"trainer {verb}" for verb, entry in installed(COMMANDS).items() if distribution(entry) in homes]
    why = f"{export['path']} stores every weight in full, zeros and repeats too"
    more = f" (verbs: {', '.join(verbs)})" if verbs else ""
    return f"{why}: add {' or '.join(sorted(codecs))} to --plugins to code it{more}"


def installed_codecs() -> set[str]:
    """The plugins that write tensors in another form, by name. Imports all plugins; one that fails is left out."""
    found = set()
    for name in installed():
        with suppress(UsageError):
            if getattr(load_class(name), "codec", False):
                found.add(name)
    return found


def print_plan(console: Console, resolved: dict[str, Any], plan: list[dict[str, str | None]], run: Run) -> None:
    """What a run would do."""
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    console.print(f"model {resolved['model']}: {parameters:,} parameters")
    console.print(f"data {resolved['data']}: {run.trainer.batches.examples:,} training examples")
    for number, (stage, lines) in enumerate(zip(run.stages, plan, strict=True), 1):
        steps = stage.options.epochs * run.trainer.steps_per_epoch
        console.print(f"stage {number}: {stage.options.epochs} epochs, {steps:,} steps")
        for name, said in lines.items():
            console.print(f"{name}: {said or 'says nothing of what it touches'}")
