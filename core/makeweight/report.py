"""What a run shows people: the table at its end, and report.html with its pictures in it."""

from __future__ import annotations

import base64
import html
import io
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from .console import print_table
from .errors import UsageError, printable
from .files import write_text
from .finished import read_config, read_run
from .plugins import COMMANDS, distribution, installed, load_class

if TYPE_CHECKING:
    from .run import Run


COLUMNS = 3
"""pictures in a row of the report"""
MOST_PICTURES, MOST_CURVES = 24, 200
"""families of metrics that are drawn, and curves of each"""
MOST_IN_LEGEND = 40
"""curves up to which a legend says which is which"""
LONGEST_LABEL = 60
"""characters of a name in a picture"""
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


def write_report(out: Path) -> Path:
    """Write report.html of a run directory from its summary.json and metrics.jsonl; one file, with nothing to fetch."""
    summary, metrics = read_run(out)
    plugins = ", ".join(summary["plugins"]) or "no plugins"
    title = f"{summary['model']} on {summary['data']}, {plugins}"
    facts = (
        f"{summary['steps']} steps in {summary['seconds']:.0f} s on {summary['processes']} process(es), "
        f"{summary['parameters']:,} parameters."
    )
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{_text(title)}</title>",
        f"<style>{STYLE}</style><h1>{_text(title)}</h1><p>{_text(facts)}</p>",
        _html_table(*sizes(summary)),
        *(
            f"<img src='data:image/svg+xml;base64,{picture}' alt='{_text(name)}'>"
            for name, picture in pictures(summary, metrics)
        ),
        "<h2>Tensors</h2>",
        _html_table(*tensor_rows(summary["export"]["tensors"])),
        "<h2>Recipe</h2>",
        "<pre>" + "\n".join(map(_text, read_config(out).split("\n"))) + "</pre></html>",
    ]
    write_text(out / "report.html", "\n".join(parts))
    return out / "report.html"


def pictures(summary: dict[str, Any], metrics: list[dict[str, float]]) -> list[tuple[str, str]]:
    """Curves of every metric over the epochs, and the bytes by tensor: (name, SVG in base 64)."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    fixed = {"step", "epoch", "stage", "seconds"}
    points: dict[str, list[tuple[float, float]]] = {}
    for line in metrics:
        for name in line.keys() - fixed:
            points.setdefault(name, []).append((line["step"], line[name]))
    losses = sorted(name for name in points if "loss" in name or name.startswith("train_"))
    families: dict[str, list[str]] = {}  # sparsity/fc1 is drawn with sparsity
    for name in sorted(points.keys() - set(losses)):
        families.setdefault(name.partition("/")[0], []).append(name)
    groups = [("loss", losses), *families.items()][:MOST_PICTURES]
    rows = -(-(len(groups) + 1) // COLUMNS)
    figure, grid = pyplot.subplots(
        rows, COLUMNS, figsize=(5 * COLUMNS, 3.6 * rows), layout="constrained", squeeze=False
    )
    axes = list(grid.flat)
    for axis in axes[len(groups) + 1 :]:
        axis.remove()
    for axis, (title, names) in zip(axes, groups, strict=False):
        names = names[:MOST_CURVES]
        for name in names:
            axis.plot(*zip(*points[name], strict=True), marker="." if len(points[name]) < 30 else None,
                      label=label(name))  # fmt: skip
        axis.set(title=label(title), xlabel="step")
        if 1 < len(names) <= MOST_IN_LEGEND:
            axis.legend(fontsize="small")
        if title == "loss" and all(value > 0 for name in names for _, value in points[name]):
            axis.set_yscale("log")
    tensors = sorted(summary["export"]["tensors"], key=lambda row: row["bytes"])[-20:]
    last = axes[len(groups)]
    last.barh(
        range(len(tensors)), [row["bytes"] for row in tensors], tick_label=[label(row["name"]) for row in tensors]
    )
    last.set(title="bytes in the export")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    return [("curves over the steps and bytes by tensor", base64.b64encode(buffer.getvalue()).decode())]


def label(name: str) -> str:
    """A name as matplotlib is to show it: in one line, short, and its dollars are no mathematics."""
    shown = printable(name)
    shown = shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 1]}…"
    return shown.replace("$", r"\$")


def _text(text: str) -> str:
    return html.escape(printable(text))


def _html_table(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .9em; border-bottom: 1px solid #ddd }
td { text-align: right; font-variant-numeric: tabular-nums } td:first-child, th:first-child { text-align: left }
img { max-width: 100% } pre { background: #f6f6f6; padding: 1em; overflow: auto }
"""
