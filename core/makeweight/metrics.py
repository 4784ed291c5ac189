"""Metrics: functions of (output, target) with a value per example, and classes that see the whole evaluation set."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .criteria import as_shaped, same_shape
from .errors import UsageError, did_you_mean
from .outputs import IGNORED, class_dimension, classes_first, has_classes, has_logits, logits_of
from .references import resolve

LOWER_IS_BETTER = {"loss", "error", "mse", "rmse", "mae", "perplexity", "nll", "entropy", "distance"}
"""words of a metric's name for which lower is better, unless the metric says otherwise"""
TAKEN = {
    "bytes", "classes", "confusion", "controls", "data", "dense_bytes", "ended", "epoch", "export", "higher_is_better",
    "loss", "lr", "metric", "metrics", "model", "parameters", "path", "plain_bytes", "plugins", "processes", "programs",
    "ratio", "seconds", "stage", "step", "steps", "tensors",
}  # fmt: skip
"""names that summary.json and metrics.jsonl use for something else"""


def correct(output: Any, target: Any) -> Tensor | None:
    """Top-1 accuracy of each example, [B]; the mean over pixels or tokens if an example has several targets.

    The class dimension is dimension 1 of an output tensor, and the last dimension of the logits of an output object
    (Hugging Face models). Targets of -100 are ignored. Returns None if the targets are not class indices.
    """
    if not has_classes(output, target):
        return None
    right = (logits_of(output).argmax(class_dimension(output)) == target).float().reshape(len(target), -1)
    counted = (target != IGNORED).reshape(len(target), -1)
    fraction: Tensor = (right * counted).sum(1) / counted.sum(1).clamp(min=1)
    return fraction


def mse(output: Any, target: Any) -> Tensor:
    """The squared error of each example, [B]; the mean over its outputs."""
    return _differences(output, target, "mse").square().mean(1)


def mae(output: Any, target: Any) -> Tensor:
    """The absolute error of each example, [B]; the mean over its outputs."""
    return _differences(output, target, "mae").abs().mean(1)


def _differences(output: Any, target: Any, name: str) -> Tensor:
    """Predictions less targets, float64 [B, outputs]. Raises UsageError if their shapes differ."""
    predicted = logits_of(output)
    if not (isinstance(target, Tensor) and isinstance(predicted, Tensor) and same_shape(predicted, target)):
        given = list(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise UsageError(f"metric {name}: targets {given}: expected the shape of the outputs")
    return (predicted.double() - as_shaped(target, predicted)).reshape(len(target), -1)


class Perplexity:
    """The exponential of the mean cross entropy of all counted targets (tokens) of the evaluation set."""

    higher_is_better = False

    def sums(self, output: Any, target: Any) -> tuple[float, int]:
        """The sum of the cross entropies in nats, and the number of targets other than -100."""
        if not has_classes(output, target):
            raise UsageError("metric perplexity: expected targets that are class indices, such as tokens")
        logits = classes_first(output).double()
        total = cross_entropy(logits, target.long(), ignore_index=IGNORED, reduction="sum")
        return float(total), int((target != IGNORED).sum())

    def value(self, total: float, count: float) -> float:
        return float(torch.tensor(total / max(count, 1), dtype=torch.float64).exp())


NAMED = {"accuracy": correct, "perplexity": Perplexity, "mse": mse, "mae": mae}
"""metrics by name"""


def measures_whole_set(metric: Any) -> bool:
    """Whether a metric has the interface of torchmetrics: `update(output, target)` and `compute()`."""
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute"))


def name_of(metric: Any) -> str:
    """A function's name or a class's name, in lower case."""
    if metric is correct:
        return "accuracy"
    return str(getattr(metric, "__name__", type(metric).__name__)).lower()


def higher_is_better(name: str, metric: Any = None) -> bool:
    """The attribute `higher_is_better` of a metric if it has one, otherwise a rule by the words of its name."""
    said = getattr(metric, "higher_is_better", None)
    return not (set(name.split("_")) & LOWER_IS_BETTER) if said is None else bool(said)


def by_name(given: Any) -> dict[str, Any]:
    """Metrics by name, from one or a list of functions, classes, their instances, and names.

    Raises UsageError for an unknown name, for an object that is not a metric, and for two metrics of one name.
    """
    metrics: dict[str, Any] = {}
    for each in given if isinstance(given, (list, tuple)) else [given]:
        metric = made(each)
        name = name_of(metric)
        if name in TAKEN or name.startswith("train_"):
            raise UsageError(f"metric {name!r}: the name is used for something else: expected another one")
        if name in metrics:
            raise UsageError(f"metric {name!r} is given twice: expected different names")
        metrics[name] = metric
    if not metrics:
        raise UsageError("metric []: expected one or more")
    return metrics


def made(given: Any) -> Any:
    """Resolve a metric: a name, a reference `package.module:name`, a class, or a function that returns the metric."""
    found = given
    if isinstance(given, str):
        if ":" not in given and given not in NAMED:
            raise UsageError(f"metric {given!r}: {did_you_mean(given, NAMED)} (or package.module:function)")
        found = resolve(given, "metric") if ":" in given else NAMED[given]
    if inspect.isclass(found) or (inspect.isfunction(found) and not inspect.signature(found).parameters):
        try:
            found = found()
        except TypeError as error:
            raise UsageError(
                f"metric {name_of(found)}: {error}: expected a class without arguments, or a function that returns one"
            ) from error
    if not (callable(found) or measures_whole_set(found) or isinstance(found, Perplexity)):
        raise UsageError(f"metric {type(found).__name__}: expected a function, or a class with update and compute")
    return found


def started(metric: Any, device: torch.device) -> Any:
    """A copy of a whole-set metric that has seen nothing. Its own synchronisation over processes is switched off."""
    metric = copy.deepcopy(metric)
    if callable(getattr(metric, "reset", None)):
        metric.reset()
    if isinstance(metric, nn.Module):
        metric = metric.to(device)
    if hasattr(metric, "sync_on_compute"):  # torchmetrics: outputs are gathered before `update`
        metric.sync_on_compute, metric._to_sync = False, False
    return metric


def prediction(output: Any) -> Any:
    """What `update` of a whole-set metric receives: the logits if there are any, otherwise the whole output."""
    return logits_of(output) if has_logits(output) else output


def check_values(name: str, values: Any, examples: int) -> Tensor:
    """The values of a metric function as a tensor with `examples` elements. Raises UsageError for any other shape."""
    found = torch.as_tensor(values)
    if found.ndim == 0 or found.numel() != examples:
        given = "one value" if found.ndim == 0 else f"values of shape {list(found.shape)}"
        raise UsageError(
            f"metric {name} gives {given} for a batch of {examples} examples: expected one value for each example, "
            f"[{examples}], or a class with update(output, target) and compute()"
        )
    return found
