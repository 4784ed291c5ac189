"""The plot of a sensitivity analysis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

DISTINCT = 10
"""largest number of layers with distinct colours; more layers are coloured along a scale, first to last"""


def plot(path: Path, kind: str, title: str, metric: str, dense: float, layers: Mapping[str, Any]) -> None:
    """Plot the metric against the sparsity of each layer, to a file of the given kind (svg, png or pdf).

    The x axis is logarithmic in the density, 1 - sparsity. `layers` as in `curves.as_json`.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    from makeweight.plugin import label

    few = len(layers) <= DISTINCT
    figure = Figure(figsize=(7 if few else 9, 4.5), layout="constrained")  # pyplot would keep every figure
    axis = figure.subplots()
    for number, (name, each) in enumerate(layers.items()):
        colour = f"C{number}" if few else colormaps["viridis"](number / (len(layers) - 1))
        kept = [1 - sparsity for sparsity in each["sparsity"]]
        axis.plot(kept, each["values"], marker=".", color=colour, label=label(name) or "the model")
    axis.axhline(dense, color="gray", linewidth=0.8, linestyle="--", label="not pruned")
    axis.set(title=title.replace("$", r"\$"), xlabel="sparsity of the layer", ylabel=label(metric), xscale="log")
    ticks = sorted({sparsity for each in layers.values() for sparsity in each["sparsity"]})
    axis.set_xticks([1 - tick for tick in ticks], [f"{tick:g}" for tick in ticks], rotation=60)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.invert_xaxis()
    figure.legend(loc="outside right upper", fontsize="small", ncols=1 + len(layers) // 30)
    figure.savefig(path, format=kind)
