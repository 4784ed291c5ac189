"""The targets of a data set, where they can be found without reading its examples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .images import Transformed
from .tensors import Tensors


def find_targets(data: Any) -> Tensor | None:
    """All targets of a data set in memory, [N, …], or the classes of an image folder; None for other data sets."""
    if isinstance(data, Tensors):
        columns = data.columns
        return columns.get("labels") if isinstance(columns, dict) else columns[-1]
    if isinstance(data, Transformed) and data.targets is not None:
        return torch.as_tensor(data.targets)
    return None
