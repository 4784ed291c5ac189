"""Whether a language model shifts its labels: its own loss is compared with both alignments of logits and labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..errors import UsageError
from ..outputs import IGNORED, classes_first, has_classes, own_loss, shifted
from ..task import Task

AGREEMENT = 1e-4
"""largest relative difference of two values of one loss"""
CAUSAL = ("LMHeadModel", "ForCausalLM")
"""endings of the class names of Hugging Face models that predict the next token"""


def shifts_labels(task: Task, model: nn.Module, batch: Any, output: Any) -> bool:
    """Whether the model computes its loss from the logits of position t and the label of position t + 1.

    The loss that the model returns for `batch` is compared with the cross entropy of either alignment. If that does not
    decide, the model is called again with a label at the first position only, which a shift drops. Raises UsageError
    if the class of the model predicts the next token, but its loss does not show the alignment.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if labels is None:
        _refuse_unshifted_pairs(model, batch, output)
        return False
    if not has_classes(output, labels) or labels.ndim != 2 or labels.shape[1] < 2:
        return False
    own = own_loss(output)
    if own is None:
        if is_causal(model):
            raise UsageError(f"{_name(model)} returns no loss for its labels: expected one that shows their alignment")
        return False
    alignments = (output, labels), shifted(output, labels)
    agree = [_is_close(float(own.detach()), _cross_entropy(*each)) for each in alignments]
    if agree[0] != agree[1]:
        return agree[1]
    drops = _drops_first_label(task, model, batch, labels)
    if drops is None and is_causal(model):
        raise UsageError(f"{_name(model)}: its loss does not show whether it shifts the labels: give --forward")
    return bool(drops)


def is_causal(model: nn.Module) -> bool:
    """Whether a model predicts the next token, by its class name or its configuration."""
    config = getattr(model, "config", None)
    decoder = getattr(config, "is_decoder", False) and not getattr(config, "is_encoder_decoder", False)
    return _name(model).endswith(CAUSAL) or bool(decoder)


def _cross_entropy(output: Any, labels: Tensor) -> float:
    with torch.no_grad():
        return float(cross_entropy(classes_first(output).float(), labels.long(), ignore_index=IGNORED))


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=AGREEMENT, abs_tol=1e-7)


def _drops_first_label(task: Task, model: nn.Module, batch: Any, labels: Tensor) -> bool | None:
    """Whether the loss of labels at the first position alone is that of no label; None if that cannot be found out."""
    first = torch.full_like(labels, IGNORED)
    first[:, 0] = torch.where(labels[:, 0] == IGNORED, 0, labels[:, 0])
    try:
        with torch.no_grad():
            output = task.forward(model, {**batch, "labels": first})
            loss, expected = own_loss(output), _cross_entropy(output, first)
    except Exception:  # the model is the user's, and this call is only a probe
        return None
    if loss is None:
        return None
    found = float(loss)
    if not math.isfinite(found) or found == 0:
        return True
    return False if _is_close(found, expected) else None


def _refuse_unshifted_pairs(model: nn.Module, batch: Any, output: Any) -> None:
    """Raise UsageError for pairs (tokens, the same tokens) of a model that predicts the next token."""
    if isinstance(batch, Mapping) or not is_causal(model) or len(batch) < 2:
        return
    tokens, target = batch[0], batch[1]
    if isinstance(tokens, Tensor) and has_classes(output, target) and torch.equal(tokens, target):
        raise UsageError(
            f"{_name(model)} predicts the next token and the targets are its inputs: expected batches "
            "{input_ids, labels}, or targets shifted by one position"
        )


def _name(model: nn.Module) -> str:
    return type(model).__name__
