"""Losses, and the choice of one by the targets. A model's own loss comes before all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from .errors import UsageError
from .outputs import IGNORED, class_dimension, classes_first, described, has_classes, logits_of, own_loss

Criterion = Callable[[Any, Any], Tensor]
SUM_TOLERANCE = 1e-4
"""largest difference from 1 of a sum of class probabilities"""
ONE_LOGIT = "--criterion torch.nn.BCEWithLogitsLoss for two classes, or --criterion torch.nn.MSELoss for numbers"


def default_criterion(output: Any, target: Any) -> Tensor:
    """The loss in the model's output if it has one, otherwise cross entropy. A scalar.

    Targets are class indices of any integer type, or class probabilities of the logits' shape.
    """
    own = own_loss(output)
    if own is not None:
        loss: Tensor = own
        return loss
    if not target.is_floating_point() and target.dtype != torch.int64:
        target = target.long()
    return cross_entropy(classes_first(output), target)


def binary_cross_entropy(output: Any, target: Any) -> Tensor:
    """The model's own loss, otherwise binary cross entropy of logits and targets 0 or 1 of the same shape. A scalar."""
    own = own_loss(output)
    logits = logits_of(output)
    return binary_cross_entropy_with_logits(logits, target.to(logits.dtype)) if own is None else own


def squared_error(output: Any, target: Any) -> Tensor:
    """The model's own loss, otherwise the mean squared error. A scalar."""
    own = own_loss(output)
    predicted = logits_of(output)
    return mse_loss(predicted, as_shaped(target, predicted).to(predicted.dtype)) if own is None else own


def as_shaped(target: Tensor, predicted: Tensor) -> Tensor:
    """Targets in the shape of the predictions, from which they may differ by dimensions of size 1: [B] and [B, 1]."""
    return target if target.shape == predicted.shape else target.reshape(predicted.shape)


def same_shape(one: Tensor, other: Tensor) -> bool:
    """Whether two batches have equal shapes, up to dimensions of size 1 behind the first."""
    shapes = [[size for size in each.shape[1:] if size != 1] for each in (one, other)]
    return len(one) == len(other) and shapes[0] == shapes[1]


def choose_criterion(output: Any, target: Tensor, known: Tensor) -> Criterion:
    """Choose the loss for a model that does not compute its own, from an output and its targets.

    `known` holds all targets if they are in memory, otherwise those of the batch. The loss is cross entropy for class
    indices, one-hot rows and class probabilities, binary cross entropy for multi-hot targets, and mean squared error
    for other floating-point targets of the output's shape. Raises UsageError for targets that do not fit the output.
    """
    logits = logits_of(output)
    shapes = f"targets {described(target)} and outputs {described(logits)}"
    if has_classes(output, target):
        if logits.shape[class_dimension(output)] == 1:
            raise UsageError(
                f"{shapes}: the cross entropy of one class is always 0: expected 2 outputs, or {ONE_LOGIT}"
            )
        return default_criterion
    if target.is_floating_point() and logits.ndim == target.ndim + 1 and not same_shape(logits, target):
        whole = bool((known == known.round()).all())
        better = "targets.long() for classes" if whole else "outputs of the shape of the targets for numbers"
        raise UsageError(f"{shapes}: expected {better}")
    if not same_shape(logits, target):
        raise UsageError(
            f"{shapes}: expected class indices, outputs without their dimension of classes, or equal shapes"
        )
    several = logits.ndim > 1 and logits.shape == target.shape and logits.shape[1] > 1
    if several and target.is_floating_point() and _are_probabilities(known):
        return default_criterion
    binary = bool(((known == 0) | (known == 1)).all())
    if binary and several:
        return binary_cross_entropy
    if binary:
        raise UsageError(f"{shapes}, all of them 0 or 1: choose the loss with {ONE_LOGIT}")
    if not target.is_floating_point():
        raise UsageError(f"{shapes}: expected targets.float() for numbers, or an output for each class")
    return squared_error


def check_labels(labels: Tensor, classes: int, where: str, ignored: int = IGNORED) -> None:
    """Raise UsageError unless all labels lie between 0 and `classes` - 1, or are `ignored`."""
    counted = labels[labels != ignored]
    if counted.numel() == 0:
        return
    low, high = int(counted.min()), int(counted.max())
    if low >= 0 and high < classes:
        return
    fix = "subtract 1 from labels that begin at 1" if low == 1 and high == classes else f"or {high + 1} outputs"
    raise UsageError(
        f"labels {low} to {high} of {where}: the model has {classes} outputs: expected labels 0 to {classes - 1} "
        f"({fix if low >= 0 else f'{ignored} is left out of the loss'})"
    )


def _are_probabilities(target: Tensor) -> bool:
    """Whether targets [N, C, …] are probabilities of classes: none below 0, and their sum over the classes is 1."""
    return bool((target >= 0).all() and ((target.sum(1) - 1).abs() <= SUM_TOLERANCE).all())
