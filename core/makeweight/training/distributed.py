"""Collective operations of data-parallel processes. With one process they return at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import MakeweightError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn


def from_first(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The tensor of the first process, in every process. All must pass equal shapes and dtypes."""
    from accelerate.utils import broadcast

    return tensor if accelerator.num_processes == 1 else broadcast(tensor.contiguous())


def agree(accelerator: Accelerator, value: Any) -> Any:
    """Broadcast a JSON value from the first process to all processes. Raises TypeError if it is not JSON."""
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
    """Copy the parameters and buffers of the first process to all processes."""
    if accelerator.num_processes > 1:
        share(accelerator, [*(parameter.data for parameter in model.parameters()), *model.buffers()])


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Copy the buffers of the first process to all: batch norm statistics differ, as each process has its own data."""
    if accelerator.num_processes > 1:
        share(accelerator, list(model.buffers()))


def share(accelerator: Accelerator, tensors: list[Tensor]) -> None:
    for tensor in tensors:
        tensor.copy_(from_first(accelerator, tensor.clone()))


def check_equal(accelerator: Accelerator, what: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise MakeweightError unless each tensor is bitwise equal in all processes. `what` describes the tensors."""
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


def mean_of_processes(accelerator: Accelerator, values: Mapping[str, float]) -> dict[str, float]:
    """The mean of each value over all processes."""
    if accelerator.num_processes == 1:
        return dict(values)
    import torch

    local = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    return dict(zip(values, accelerator.reduce(local, "mean").tolist(), strict=True))


def most_of_processes(accelerator: Accelerator, value: int) -> int:
    """The largest of the processes' integers, in every process."""
    if accelerator.num_processes == 1:
        return int(value)
    import torch

    return int(accelerator.gather(torch.tensor([int(value)], device=accelerator.device)).max())
