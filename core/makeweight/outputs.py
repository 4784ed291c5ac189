"""Batches and model outputs: the call of a model, targets, logits, and logits aligned with shifted targets."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

IGNORED = -100
"""target that losses and metrics leave out, as in torch and Hugging Face"""


def call_model(model: nn.Module, batch: Any) -> Any:
    """Return `model(x)` for a batch (x, y), and `model(**batch)` for a mapping, as Hugging Face models expect."""
    return model(batch[0]) if isinstance(batch, (list, tuple)) else model(**batch)


def target_of(batch: Any) -> Any:
    """The target y of a batch (x, y); for a mapping its `labels`, or the whole mapping if it has no `labels`."""
    return batch[1] if isinstance(batch, (list, tuple)) else batch.get("labels", batch)


def logits_of(output: Any) -> Any:
    """The logits of a model output, which may be a tensor, a mapping or an object with the attribute `logits`."""
    if isinstance(output, Mapping):
        return output["logits"]
    return getattr(output, "logits", output)


def has_logits(output: Any) -> bool:
    """Whether `logits_of` gives a tensor."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    return isinstance(found, Tensor)


def own_loss(output: Any) -> Any:
    """The loss that a model computed itself and returned in its output; None if it did not."""
    if isinstance(output, Tensor):
        return None
    return output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)


def class_dimension(output: Any) -> int:
    """The dimension of classes: 1 for an output tensor, the last of the logits of an output object (Hugging Face)."""
    return 1 if isinstance(output, Tensor) else -1


def has_classes(output: Any, target: Any) -> bool:
    """Whether the targets are class indices, with one dimension less than the logits."""
    if not isinstance(target, Tensor) or target.is_floating_point() or not has_logits(output):
        return False
    return bool(logits_of(output).ndim == target.ndim + 1)


def classes_first(output: Any) -> Tensor:
    """The logits with the classes in dimension 1, as torch's losses expect: [B, C, …]."""
    logits: Tensor = logits_of(output)
    return logits if isinstance(output, Tensor) or logits.ndim < 3 else logits.movedim(-1, 1)


def shifted(output: Any, target: Any) -> tuple[Any, Any]:
    """Output and targets [B, T] of a model that predicts the next token: logits [B, T - 1, V], targets [B, T - 1].

    Position t of the logits is then paired with target t + 1. Other entries of the output are unchanged.
    """
    if not has_classes(output, target) or target.ndim != 2:
        return output, target
    logits, target = logits_of(output)[:, :-1], target[:, 1:]
    if isinstance(output, Tensor):
        return logits, target
    if isinstance(output, Mapping):
        changed = copy.copy(output) if isinstance(output, MutableMapping) else dict(output)
        changed["logits"] = logits
        return changed, target
    if hasattr(output, "_replace"):  # a named tuple
        return output._replace(logits=logits), target
    changed = copy.copy(output)
    object.__setattr__(changed, "logits", logits)  # a frozen dataclass refuses setattr
    return changed, target


def described(value: Any) -> str:
    """The dtype and shape of a tensor, or the type of another value, for error messages."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"a {type(value).__name__}"
