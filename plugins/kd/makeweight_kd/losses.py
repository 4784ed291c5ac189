"""The losses of distillation, on logits and features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def divergence(student: Tensor, teacher: Tensor | Sequence[Tensor], temperature: float) -> Tensor:
    """KL(teacher ‖ student) of the softened distributions, the mean over the batch.

    Both are logits [B, classes]; several teachers speak with the mean of their probabilities. No gradient flows into
    a teacher. Hinton et al. 2015 multiply this by the squared temperature, so that its gradient keeps its size; be
    your own teacher (Zhang et al. 2019) does not.
    """
    soft = log_softmax(student.float() / temperature, 1)
    said = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    target = log_mean_probability([each.detach() for each in said], temperature)
    return kl_div(soft, target, reduction="batchmean", log_target=True)


def log_mean_probability(logits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """What an ensemble says: the logarithm of its members' mean probability, [B, classes] of each one's logits."""
    each = [log_softmax(member.float() / temperature, 1) for member in logits]
    if len(each) == 1:
        return each[0]
    return torch.logsumexp(torch.stack(each), 0) - math.log(len(each))


def feature_distance(shallow: Tensor, deepest: Tensor) -> Tensor:
    """The L2 norm of the difference of two feature vectors [B, D], the mean over the batch (Zhang et al. 2019, eq. 4).

    No gradient flows into the deepest.
    """
    return torch.linalg.vector_norm(shallow.float() - deepest.detach().float(), dim=1).mean()
