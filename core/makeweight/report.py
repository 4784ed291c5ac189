"""What a run shows people: the table at its end, and report.html with its pictures in it."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from .console import print_table
from .errors import MakeweightError
from .files import write_text

if TYPE_CHECKING:
    from .trainer import Trainer


COLUMNS = 3
"""pictures in a row of the report"""


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
    """The table at the end of a run."""
    header, rows = sizes(summary)
    print_table(console, header, rows)
    console.print(f"{summary['steps']} steps in {summary['seconds']:.0f} s; see {out}/report.html")


def print_plan(console: Console, resolved: dict[str, Any], plan: dict[str, str | None], trainer: Trainer) -> None:
    """What a run would do."""
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    console.print(f"model {resolved['model']}: {parameters:,} parameters")
    console.print(f"data {resolved['data']}: {trainer.batches.examples:,} training examples")
    for number, stage in enumerate(trainer.stages, 1):
        steps = stage.options.epochs * trainer.steps_per_epoch
        console.print(f"stage {number}: {stage.options.epochs} epochs, {steps:,} steps")
    for name, said in plan.items():
        console.print(f"{name}: {said or 'says nothing of what it touches'}")


def write_report(out: Path) -> Path:
    """Write report.html of a run directory from its summary.json and metrics.jsonl; one file, with nothing to fetch."""
    summary, metrics = read_run(out)
    size_header, size_rows = sizes(summary)
    tensor_header, rows = tensor_rows(summary["export"]["tensors"])
    plugins = ", ".join(summary["plugins"]) or "no plugins"
    title = f"{summary['model']} on {summary['data']}, {plugins}"
    config = (out / "config.yaml").read_text(encoding="utf-8") if (out / "config.yaml").exists() else ""
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>",
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>",
        f"<p>{summary['steps']} steps in {summary['seconds']:.0f} s on {summary['processes']} process(es), "
        f"{summary['parameters']:,} parameters.</p>",
        _html_table(size_header, size_rows),
        *(
            f"<img src='data:image/svg+xml;base64,{picture}' alt='{name}'>"
            for name, picture in pictures(summary, metrics)
        ),
        "<h2>Tensors</h2>",
        _html_table(tensor_header, rows),
        f"<h2>Recipe</h2><pre>{html.escape(config)}</pre></html>",
    ]
    write_text(out / "report.html", "\n".join(parts))
    return out / "report.html"


def read_run(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """summary.json and the lines of metrics.jsonl. Raises MakeweightError where a run is missing or not over."""
    try:
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return summary, [json.loads(line) for line in lines]
    except FileNotFoundError as error:
        raise MakeweightError(f"{out}: no finished run there: {Path(error.filename).name} is missing") from error
    except ValueError as error:
        raise MakeweightError(f"{out}: damaged: {error}") from error


def pictures(summary: dict[str, Any], metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Curves of every metric over the epochs, and the bytes by tensor: (name, SVG in base 64)."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    fixed = {"step", "epoch", "stage", "seconds"}
    losses = sorted({key for line in metrics for key in line if "loss" in key or key.startswith("train_")} - fixed)
    others = sorted({key for line in metrics for key in line} - fixed - set(losses))
    families: dict[str, list[str]] = {}  # sparsity/fc1 is drawn with sparsity
    for name in others:
        families.setdefault(name.partition("/")[0], []).append(name)
    groups = [("loss", losses), *families.items()]
    rows = -(-(len(groups) + 1) // COLUMNS)
    figure, grid = pyplot.subplots(
        rows, COLUMNS, figsize=(5 * COLUMNS, 3.6 * rows), layout="constrained", squeeze=False
    )
    axes = list(grid.flat)
    for axis in axes[len(groups) + 1 :]:
        axis.remove()
    for axis, (title, names) in zip(axes, groups, strict=False):
        for name in names:
            points = [(line["step"], line[name]) for line in metrics if name in line]
            axis.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None, label=name)
        axis.set(title=title, xlabel="step")
        if len(names) > 1:
            axis.legend(fontsize="small")
        if title == "loss" and all(line[name] > 0 for line in metrics for name in names if name in line):
            axis.set_yscale("log")
    tensors = sorted(summary["export"]["tensors"], key=lambda row: row["bytes"])[-20:]
    last = axes[len(groups)]
    last.barh([row["name"] for row in tensors], [row["bytes"] for row in tensors])
    last.set(title="bytes in the export")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    return [("curves over the steps and bytes by tensor", base64.b64encode(buffer.getvalue()).decode())]


def _html_table(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .9em; border-bottom: 1px solid #ddd }
td { text-align: right; font-variant-numeric: tabular-nums } td:first-child, th:first-child { text-align: left }
img { max-width: 100% } pre { background: #f6f6f6; padding: 1em; overflow: auto }
"""
