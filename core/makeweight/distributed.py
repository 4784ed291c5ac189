"""What several processes decide together. All of it costs nothing in a single one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import MakeweightError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn


def from_first(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The first process's tensor, in every process."""
    from accelerate.utils import broadcast

    return tensor if accelerator.num_processes == 1 else broadcast(tensor.contiguous())


def agree(accelerator: Accelerator, value: Any) -> Any:
    """The first process's JSON value, in every process. Raises TypeError for what is not JSON."""
    import torch

    text = json.dumps(value).encode()
    if accelerator.num_processes > 1:
        size = int(from_first(accelerator, torch.tensor([len(text)], device=accelerator.device)))
        data = torch.zeros(size, dtype=torch.uint8)
        if accelerator.is_main_process:
            data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        text = bytes(from_first(accelerator, data.to(accelerator.device)).cpu().tolist())
    return json.loads(text)


def share_weights(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if accelerator.num_processes > 1:
        share(accelerator, [*(parameter.data for parameter in model.parameters()), *model.buffers()])


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the first one's buffers: batch norm's statistics differ by what each has seen."""
    if accelerator.num_processes > 1:
        share(accelerator, list(model.buffers()))


def share(accelerator: Accelerator, tensors: list[Tensor]) -> None:
    for tensor in tensors:
        tensor.copy_(from_first(accelerator, tensor.clone()))


def check_equal(accelerator: Accelerator, what: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise MakeweightError where a tensor has not the same bits in every process."""
    if accelerator.num_processes == 1:
        return
    import torch
    import xxhash

    hashes = [
        xxhash.xxh3_64_intdigest(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data) >> 1
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
