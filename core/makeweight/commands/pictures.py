"""The pictures of a report: curves of the metrics, and bytes by tensor."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from ..errors import printable

if TYPE_CHECKING:
    pass


COLUMNS = 3
"""pictures in a row of the report"""


MOST_PICTURES, MOST_CURVES = 24, 200
"""families of metrics that are drawn, and curves of each"""


MOST_IN_LEGEND = 40
"""curves up to which a legend says which is which"""


LONGEST_LABEL = 60
"""characters of a name in a picture"""


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
