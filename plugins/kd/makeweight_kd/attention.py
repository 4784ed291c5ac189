"""Attention transfer and hints: losses on the feature maps of a student and a teacher, layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from .features import as_map, pooled


def attention_map(features: Tensor) -> Tensor:
    """The attention map [B, 1, H, W] of a feature map [B, C, H, W]: the mean of its squares over the channels."""
    return features.float().square().mean(1, keepdim=True)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """‖Q_s/‖Q_s‖ - Q_t/‖Q_t‖‖ / (H·W), averaged over the batch (Zagoruyko & Komodakis 2017, eq. 2); a scalar.

    Q is a flattened attention map [B, H·W]. Average pooling reduces the larger map to the smaller one's size. The
    division by the number of positions H·W makes the paper's β of 1000 apply. The teacher gets no gradient.
    """
    ours, theirs = same_size(attention_map(as_map(student)), attention_map(as_map(teacher.detach())))
    difference = normalize(ours.flatten(1), eps=1e-12) - normalize(theirs.flatten(1), eps=1e-12)  # [B, H * W]
    norms: Tensor = torch.linalg.vector_norm(difference, dim=1)  # [B]
    return norms.mean() / difference.shape[1]


def hint_distance(guided: Tensor, hint: Tensor) -> Tensor:
    """½‖u - r(v)‖² / number of elements of u, averaged over the batch (Romero et al. 2015, eq. 3); a scalar.

    `guided` is the student's adapted output r(v), `hint` the teacher's output u. Of two maps [B, C, H, W], average
    pooling reduces the larger one to the smaller one's size. Where `guided` is a vector [B, D], the hint is averaged
    over its positions or tokens. The teacher gets no gradient.
    """
    guided, hint = guided.float(), hint.detach().float()
    if guided.ndim == 4:
        guided, hint = same_size(guided, as_map(hint))
    else:
        hint = pooled(hint)
    return (guided - hint).square().mean() / 2


class Adapter(nn.Module):
    """The regressor r of a hint: brings the student's output to the teacher's number of channels.

    It is a 1×1 convolution between two feature maps, else a linear layer on pooled features [B, D]. The arguments are
    one output each of the student's and of the teacher's module.
    """

    def __init__(self, student: Tensor, teacher: Tensor) -> None:
        super().__init__()
        self.maps = student.ndim == teacher.ndim == 4
        if self.maps:
            self.layer: nn.Module = nn.Conv2d(as_map(student).shape[1], as_map(teacher).shape[1], 1)
        else:
            self.layer = nn.Linear(pooled(student).shape[1], pooled(teacher).shape[1])

    def forward(self, features: Tensor) -> Tensor:
        adapted: Tensor = self.layer(as_map(features) if self.maps else pooled(features))
        return adapted


def same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, C, H, W], average-pooled to the smaller of their heights and the smaller of their widths."""
    height, width = (min(one.shape[dim], other.shape[dim]) for dim in (2, 3))
    return adaptive_avg_pool2d(one, (height, width)), adaptive_avg_pool2d(other, (height, width))
