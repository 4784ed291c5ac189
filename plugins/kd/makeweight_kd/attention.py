"""Attention transfer and hints: what the maps of a teacher have to say, layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from .features import as_map, pooled


def attention_map(features: Tensor) -> Tensor:
    """Where a feature map [B, C, H, W] is active: the mean over the channels of its square, [B, 1, H, W]."""
    return features.float().square().mean(1, keepdim=True)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """‖Q_s/‖Q_s‖ - Q_t/‖Q_t‖‖ over the number of places, the mean over the batch (Zagoruyko & Komodakis 2017, eq. 2).

    Q are the attention maps of two feature maps, flattened; the larger map is averaged to the smaller one's size. That
    the norm is divided by the number of places is how the paper's β of 1000 is meant. No gradient flows into the
    teacher.
    """
    ours, theirs = same_size(attention_map(as_map(student)), attention_map(as_map(teacher.detach())))
    difference = normalize(ours.flatten(1), eps=1e-12) - normalize(theirs.flatten(1), eps=1e-12)  # [B, H * W]
    return torch.linalg.vector_norm(difference, dim=1).mean() / difference.shape[1]


def hint_distance(guided: Tensor, hint: Tensor) -> Tensor:
    """½‖u - r(v)‖² over the number of elements, the mean over the batch (Romero et al. 2015, eq. 3).

    `guided` is the student's output behind its adapter, `hint` the teacher's. Of two maps [B, C, H, W] the larger one
    is averaged to the smaller one's size; beside a vector [B, D] a map is averaged over its places. No gradient flows
    into the teacher.
    """
    guided, hint = guided.float(), hint.detach().float()
    if guided.ndim == 4:
        guided, hint = same_size(guided, as_map(hint))
    else:
        hint = pooled(hint)
    return (guided - hint).square().mean() / 2


class Adapter(nn.Module):
    """The regressor of a hint: a 1×1 convolution to the teacher's channels, or a linear layer where one is a vector."""

    def __init__(self, student: Tensor, teacher: Tensor) -> None:
        super().__init__()
        self.maps = student.ndim == teacher.ndim == 4
        if self.maps:
            self.layer: nn.Module = nn.Conv2d(as_map(student).shape[1], as_map(teacher).shape[1], 1)
        else:
            self.layer = nn.Linear(pooled(student).shape[1], pooled(teacher).shape[1])

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(as_map(features) if self.maps else pooled(features))


def same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, C, H, W], each averaged to the smaller height and width of both."""
    height, width = (min(one.shape[place], other.shape[place]) for place in (2, 3))
    return adaptive_avg_pool2d(one, (height, width)), adaptive_avg_pool2d(other, (height, width))
