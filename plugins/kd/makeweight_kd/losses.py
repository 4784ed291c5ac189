"""The losses of distillation, on logits and features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) of the softened distributions, the mean over the batch.

    Both are logits [B, classes]; no gradient flows into the teacher. Hinton et al. 2015 multiply this by the squared
    temperature, so that its gradient keeps its size; be your own teacher (Zhang et al. 2019) does not.
    """
    soft = log_softmax(student.float() / temperature, 1)
    target = log_softmax(teacher.detach().float() / temperature, 1)
    return kl_div(soft, target, reduction="batchmean", log_target=True)


def feature_distance(shallow: Tensor, deepest: Tensor) -> Tensor:
    """The L2 norm of the difference of two feature vectors [B, D], the mean over the batch (Zhang et al. 2019, eq. 4).

    No gradient flows into the deepest.
    """
    return torch.linalg.vector_norm(shallow.float() - deepest.detach().float(), dim=1).mean()
