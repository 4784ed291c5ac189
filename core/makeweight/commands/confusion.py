"""Accuracy by class and confusions of classes: for summary.json, and as a table and a picture of the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import printable
from ..outputs import IGNORED, class_dimension, has_classes, logits_of
from .plots import label

MOST_CLASSES = 1000
"""largest number of classes for which summary.json has accuracies"""
MOST_DRAWN = 25
"""maximum number of classes for which the full confusion matrix is kept and drawn"""
MOST_PAIRS = 20
"""number of most frequent confusions that are kept if there are more classes"""
MOST_ROWS = 100
"""rows of the table in the report; of more classes, those with the lowest accuracies"""
LONGEST_NAME = 200


class Confusion:
    """Counts targets by class and predicted class, [C, C]. Does nothing if the targets are not class indices."""

    def __init__(self) -> None:
        self.counts: Tensor | None = None

    def update(self, output: Any, target: Any) -> None:
        """Add a batch. Targets of -100 are ignored; each pixel or token counts."""
        if not has_classes(output, target):
            return
        axis = class_dimension(output)
        classes = logits_of(output).shape[axis]
        if classes > MOST_CLASSES:
            return
        counted = target != IGNORED
        pairs = target[counted].long() * classes + logits_of(output).argmax(axis)[counted]
        found = torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes).cpu()
        self.counts = found if self.counts is None else self.counts + found

    def facts(self, names: Sequence[str] | None) -> dict[str, Any]:
        """The tables `classes` and `confusion` of summary.json; empty if the targets are not class indices.

        `confusion` is the matrix of counts by class and prediction, or for many classes a list of the most frequent
        confusions (class, prediction, count).
        """
        if self.counts is None:
            return {}
        classes = len(self.counts)
        known = names if names is not None and len(names) == classes else [str(index) for index in range(classes)]
        totals, right = self.counts.sum(1).tolist(), self.counts.diagonal().tolist()
        table = [
            {"name": name[:LONGEST_NAME], "examples": total, "accuracy": correct / total if total else None}
            for name, total, correct in zip(known, totals, right, strict=True)
        ]
        if classes <= MOST_DRAWN:
            return {"classes": table, "confusion": {"matrix": self.counts.tolist()}}
        wrong = self.counts - self.counts.diagonal().diag()
        order = wrong.flatten().argsort(descending=True, stable=True)[:MOST_PAIRS].tolist()
        pairs = [[each // classes, each % classes, int(wrong.flatten()[each])] for each in order]
        return {"classes": table, "confusion": {"pairs": [pair for pair in pairs if pair[2] > 0]}}


def check_classes(summary: dict[str, Any]) -> None:
    """Raise ValueError unless the tables of `Confusion.facts` in an untrusted summary.json are valid or absent."""
    classes, confusion = summary.setdefault("classes", []), summary.setdefault("confusion", {})
    if not (isinstance(classes, list) and len(classes) <= MOST_CLASSES and isinstance(confusion, dict)):
        raise ValueError("its classes are not a list, or its confusion is not a table")
    for number, each in enumerate(classes):
        if not (isinstance(each, dict) and isinstance(each.get("name"), str) and _is_count(each.get("examples"))):
            raise ValueError(f"class {number} has no name or number of examples")
        accuracy = each.get("accuracy")
        if not (accuracy is None or (type(accuracy) in (int, float) and 0 <= accuracy <= 1)):
            raise ValueError(f"the accuracy of class {number} is not between 0 and 1")
    matrix, pairs, size = confusion.get("matrix", []), confusion.get("pairs", []), len(classes)
    rows = [*_rows(matrix, MOST_DRAWN), *_rows(pairs, MOST_PAIRS)]
    if not all(isinstance(row, list) and all(map(_is_count, row)) for row in rows):
        raise ValueError("its confusion holds something other than counts")
    if matrix and not (len(matrix) == size and all(len(row) == size for row in matrix)):
        raise ValueError(f"its confusion matrix is not {size} x {size}")
    if not all(len(pair) == 3 and max(pair[:2]) < size for pair in pairs):
        raise ValueError("its confusion has a pair of classes that do not exist")


def class_parts(summary: dict[str, Any], table: Callable[[list[str], list[list[str]]], str]) -> list[str]:
    """HTML of the classes for the report: a table made by `table(header, rows)`, and confusions; empty if none."""
    classes, confusion = summary.get("classes", []), summary.get("confusion", {})
    if not classes:
        return []
    parts = ["<h2>Classes</h2>"]
    if len(classes) > MOST_ROWS:
        parts.append(f"<p>The {MOST_ROWS} of {len(classes):,} classes with the lowest accuracies.</p>")
    parts.append(table(["class", "test examples", "accuracy"], class_rows(classes)))
    if confusion.get("matrix"):
        source = f"data:image/svg+xml;base64,{matrix_picture(summary)}"
        parts.append(f"<img style='max-width: 44em' src='{source}' alt='confusion matrix'>")
    if confusion.get("pairs"):
        rows = [[_name(classes, one), _name(classes, other), f"{count:,}"] for one, other, count in confusion["pairs"]]
        parts += ["<h3>Most frequent confusions</h3>", table(["class", "predicted", "test examples"], rows)]
    return parts


def class_rows(classes: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of the table of classes: all in their order, or of many those with the lowest accuracies."""
    if len(classes) > MOST_ROWS:
        rank = [1.0 if each["accuracy"] is None else each["accuracy"] for each in classes]
        classes = [classes[index] for index in sorted(range(len(classes)), key=rank.__getitem__)[:MOST_ROWS]]
    return [
        [each["name"], f"{each['examples']:,}", "" if each["accuracy"] is None else f"{100 * each['accuracy']:.2f} %"]
        for each in classes
    ]


def matrix_picture(summary: dict[str, Any]) -> str:
    """The confusion matrix as SVG in base64: the color is the fraction of a class, the number the count."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = [label(each["name"]) for each in summary["classes"]]
    matrix = summary["confusion"]["matrix"]
    size = max(4.0, 0.45 * len(names) + 2)
    figure, axis = pyplot.subplots(figsize=(size, size), layout="constrained")
    shares = [[count / max(sum(row), 1) for count in row] for row in matrix]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for y, row in enumerate(matrix):
        for x, count in enumerate(row):
            if count:
                color = "white" if shares[y][x] > 0.5 else "black"
                axis.text(x, y, f"{count}", ha="center", va="center", fontsize=7, color=color)
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="predicted", ylabel="class", title="test examples by class and prediction")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _name(classes: list[dict[str, Any]], index: int) -> str:
    return printable(classes[index]["name"])


def _rows(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError("its confusion is not a list of rows")
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
