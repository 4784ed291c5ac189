"""The tables that a run prints: the plan of a dry run, and the summary with a hint on codecs."""

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
"""a hint is printed if the ratio to dense float32 is below the first and coding reaches this fraction of the file"""


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def shape_text(shape: list[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def sizes(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of file sizes: header and rows. Accuracy is shown in percent."""
    export = summary["export"]
    metric = summary["metric"]
    show = percent if metric == "accuracy" else lambda value: "" if value is None else f"{value:.5g}"
    rows = [["dense float32", f"{export['dense_bytes']:,}", "1.0", show(summary.get(metric))]]
    for name, size in export["controls"].items():
        rows.append([f"dense, {name}", f"{size:,}", f"{export['dense_bytes'] / size:.1f}", show(summary.get(metric))])
    rows.append([export["path"], f"{export['bytes']:,}", f"{export['ratio']:.1f}", show(export.get(metric))])
    header = ["file", "bytes", "times smaller", f"test {metric}"]
    programs = export.get("programs", {})
    if not programs:
        return header, rows
    rows = [[*row, "", "", ""] for row in rows]
    for name, facts in programs.items():
        milliseconds, faster = facts.get("milliseconds"), facts.get("times_as_fast")
        rows.append([
            name, f"{facts['bytes']:,}", f"{export['dense_bytes'] / facts['bytes']:.1f}", show(facts.get(metric)),
            percent(facts.get("agreement")), "" if milliseconds is None else f"{milliseconds:.3g}",
            "" if faster is None else f"{faster:.2f}",
        ])  # fmt: skip
    return ["file", "bytes", "smaller", metric, "agreement", "ms", "faster"], rows


def tensor_rows(tensors: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The table of tensors: header and rows."""
    rows = [
        [row["name"], shape_text(row["shape"]), row["dtype"], percent(row["density"]),
         f"{row['bits_per_weight']:.2f}", f"{row['bytes']:,}"]
        for row in tensors
    ]  # fmt: skip
    return ["tensor", "shape", "dtype", "density", "bits per weight", "bytes"], rows


def print_summary(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Print the table of file sizes at the end of a run, and `advice`."""
    header, rows = sizes(summary)
    print_table(console, header, rows)
    console.print(f"{summary['steps']} steps in {summary['seconds']:.0f} s; see {out}/report.html")
    if line := advice(summary):
        console.print(line)


def advice(summary: dict[str, Any]) -> str:
    """A hint on installed codecs if they would make the export smaller; otherwise an empty string."""
    export = summary["export"]
    nonzero = sum(row["density"] * row["bytes"] for row in export["tensors"])
    coded = min(export["controls"].values(), default=nonzero)  # controls are not measured for large files
    if export["ratio"] >= HARDLY_SMALLER or coded >= REPETITIVE * export["bytes"]:
        return ""
    codecs = installed_codecs()
    if not codecs or codecs & set(summary["plugins"]):
        return ""
    homes = {distribution(installed()[name]) for name in codecs}
    verbs = [f"trainer {verb}" for verb, entry in installed(COMMANDS).items() if distribution(entry) in homes]
    why = f"{export['path']} stores all weights uncoded, including zeros and repeated values"
    more = f" (verbs: {', '.join(verbs)})" if verbs else ""
    return f"{why}: add {' or '.join(sorted(codecs))} to --plugins to code it{more}"


def installed_codecs() -> set[str]:
    """The names of installed codecs. Imports all plugins; those that cannot be imported are left out."""
    found = set()
    for name in installed():
        with suppress(UsageError):
            if getattr(load_class(name), "codec", False):
                found.add(name)
    return found


def print_plan(console: Console, resolved: dict[str, Any], plan: list[dict[str, str | None]], run: Run) -> None:
    """Print the plan of a dry run: model, data, stages, and the lines of `on_check`."""
    from ..models import freezing  # imports torch, which the report does without

    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    console.print(f"model {resolved['model']}: {parameters:,} parameters")
    console.print(f"data {resolved['data']}: {run.trainer.batches.examples:,} training examples")
    console.print(run.task.described())
    for number, (stage, lines) in enumerate(zip(run.stages, plan, strict=True), 1):
        steps = stage.options.epochs * run.trainer.steps_per_epoch
        console.print(f"stage {number}: {stage.options.epochs} epochs, {steps:,} steps")
        if globs := stage.options.frozen:
            try:
                console.print(freezing.described(run.model, globs))
            except UsageError:  # names of modules that an earlier stage makes
                console.print(f"frozen: {', '.join(globs)}")
        for name, said in lines.items():
            console.print(f"{name}: {said or 'no description'}")
