"""What several processes decide together. All of it costs nothing in a single one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .errors import MakeweightError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


def from_first(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The first process's tensor, in every process."""
    from accelerate.utils import broadcast

    return tensor if accelerator.num_processes == 1 else broadcast(tensor.contiguous())


def check_equal(accelerator: Accelerator, what: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise MakeweightError where a tensor has not the same bits in every process."""
    if accelerator.num_processes == 1:
        return
    import torch
    import xxhash

    hashes = [
        xxhash.xxh3_64_intdigest(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data) >> 1
        for tensor in tensors.values()
    ]
    gathered = accelerator.gather(
        torch.tensor([hashes], dtype=torch.int64, device=accelerator.device)
    )  # [processes, n]
    for name, column in zip(tensors, gathered.T, strict=True):
        if len(column.unique()) > 1:
            raise MakeweightError(
                f"{what} of {name} differ between processes: this should not happen, please report it"
            )
