"""Plots of the report: metrics over steps, and the bytes of the export by group of layers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from statistics import median
from typing import Any

from ..errors import printable

MOST_PICTURES, MOST_CURVES = 24, 200
"""maximum number of plots of metrics, and of curves in a plot"""
MOST_IN_LEGEND = 8
"""maximum number of curves that are drawn one by one; more are summarised by their median and range"""
MOST_GROUPS = 12
"""maximum number of groups of layers that get a separate bar"""
LONGEST_LABEL = 60
"""maximum number of characters of a name in a plot"""
SIZE = (5.0, 3.4)
"""width and height of a plot in inches"""
FIXED = {"step", "epoch", "stage", "seconds"}
"""entries of a line of metrics.jsonl that are not metrics"""

Points = dict[str, dict[float, float]]
"""values by step of each curve"""


def pictures(summary: dict[str, Any], metrics: list[dict[str, float]]) -> Iterator[tuple[str, str]]:
    """Plots of all metrics over the steps, then a bar chart of the bytes in the export: (title, SVG)."""
    import matplotlib

    matplotlib.use("svg")
    for title, curves in families(metrics):
        yield title, _plot(title, curves)
    yield "bytes in the export", _bars(byte_groups(summary["export"]["tensors"]))


def families(metrics: list[dict[str, float]]) -> list[tuple[str, Points]]:
    """Curves grouped by plot: all losses in one, and each metric with its parts (`sparsity` and `sparsity/fc1`)."""
    points: Points = {}
    for line in metrics:
        for name in line.keys() - FIXED:
            points.setdefault(name, {})[line["step"]] = line[name]
    if {name for name in points if name.startswith("train_")} == {"train_loss", "train_task"}:
        del points["train_task"]  # the only term of the loss
    found: dict[str, Points] = {"loss": {}}
    for name in sorted(points):
        is_loss = "loss" in name or name.startswith("train_")
        family = found.setdefault("loss" if is_loss else name.partition("/")[0], {})
        if len(family) < MOST_CURVES:
            family[name] = points[name]
    return [(title, curves) for title, curves in found.items() if curves][:MOST_PICTURES]


def spread(curves: Points) -> list[tuple[float, float, float, float]]:
    """Minimum, median and maximum over the curves at each step: [(step, minimum, median, maximum)]."""
    steps = sorted({step for curve in curves.values() for step in curve})
    values = [[curve[step] for curve in curves.values() if step in curve] for step in steps]
    return [(step, min(each), median(each), max(each)) for step, each in zip(steps, values, strict=True)]


def byte_groups(tensors: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Bytes by group of layers, the largest first; groups beyond `MOST_GROUPS` are added up as `n others`.

    Tensors are grouped by as much of their module's name as gives at most twice as many groups.
    """
    paths = {row["name"]: row["name"].split(".")[:-1] or [row["name"]] for row in tensors}
    deepest = min(max(map(len, paths.values()), default=1), 16)
    grouped: dict[str, int] = {}
    for depth in range(deepest, 0, -1):
        grouped = {}
        for row in tensors:
            name = ".".join(paths[row["name"]][:depth])
            grouped[name] = grouped.get(name, 0) + row["bytes"]
        if len(grouped) <= 2 * MOST_GROUPS:
            break
    ordered = sorted(grouped.items(), key=lambda item: (-item[1], item[0]))
    rest = ordered[MOST_GROUPS:]
    folded = [(f"{len(rest)} others", sum(size for _, size in rest))] if rest else []
    return ordered[:MOST_GROUPS] + folded


def _plot(title: str, curves: Points) -> str:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=SIZE, layout="constrained")
    parts = {name: curve for name, curve in curves.items() if "/" in name}
    summarised = parts if len(parts) > MOST_IN_LEGEND else {}
    if summarised:
        steps, low, middle, high = zip(*spread(summarised), strict=True)
        axis.fill_between(steps, low, high, alpha=0.2, label=f"range of {len(summarised)} layers")
        axis.plot(steps, middle, label="their median")
    for name, curve in curves.items():
        if name not in summarised:
            axis.plot(list(curve), list(curve.values()), marker="." if len(curve) < 30 else None, label=label(name))
    axis.set(title=label(title), xlabel="step")
    if 1 < len(axis.get_legend_handles_labels()[0]) <= 2 * MOST_IN_LEGEND:
        axis.legend(fontsize="small")
    if title == "loss" and all(value > 0 for curve in curves.values() for value in curve.values()):
        axis.set_yscale("log")
    return _svg(figure)


def _bars(groups: list[tuple[str, int]]) -> str:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=SIZE, layout="constrained")
    names, sizes = [label(name) for name, _ in groups], [size for _, size in groups]
    bars = axis.barh(range(len(groups)), sizes, tick_label=names)
    axis.bar_label(bars, [f"{size:,}" for size in sizes], padding=2, fontsize="small")
    axis.margins(x=0.2)
    axis.invert_yaxis()  # the largest first
    axis.set(title="bytes in the export", xticks=[])
    axis.tick_params(axis="y", labelsize="small")
    return _svg(figure)


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    return buffer.getvalue()


def label(name: str) -> str:
    """A name as a label of matplotlib: in one line, shortened, and with escaped dollar signs (no math mode)."""
    shown = printable(name)
    shown = shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 1]}…"
    return shown.replace("$", r"\$")
