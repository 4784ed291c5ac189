"""Distillation losses on logits and feature vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def divergence(student: Tensor, teacher: Tensor | Sequence[Tensor], temperature: float) -> Tensor:
    """KL(teacher ‖ student) of the softened distributions, averaged over the batch; a scalar.

    Both arguments are logits [B, classes]. Several teachers form an ensemble: the mean of their probabilities. The
    teachers get no gradient. The factor T² that keeps the gradient's size (Hinton et al. 2015) is left to the caller;
    Zhang et al. 2019 do not use it.
    """
    soft = log_softmax(student.float() / temperature, 1)
    teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    target = log_mean_probability([logits.detach() for logits in teachers], temperature)
    return kl_div(soft, target, reduction="batchmean", log_target=True)


def log_mean_probability(logits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """An ensemble's prediction: the logarithm of its members' mean probability, [B, classes].

    `logits` holds each member's logits [B, classes], which are divided by the temperature.
    """
    members = [log_softmax(member.float() / temperature, 1) for member in logits]
    if len(members) == 1:
        return members[0]
    return torch.logsumexp(torch.stack(members), 0) - math.log(len(members))


def feature_distance(shallow: Tensor, deepest: Tensor) -> Tensor:
    """‖shallow - deepest‖₂ of feature vectors [B, D], averaged over the batch (Zhang et al. 2019, eq. 4); a scalar.

    The deepest features get no gradient.
    """
    distances: Tensor = torch.linalg.vector_norm(shallow.float() - deepest.detach().float(), dim=1)  # [B]
    return distances.mean()
