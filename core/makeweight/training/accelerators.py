"""Creates the accelerator, and turns accelerate's errors into UsageError."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState

from ..errors import UsageError

SHARDING = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.FSDP)
"""engines that shard parameters; not supported, since plugins read whole weights"""


def new_accelerator(precision: str, tracker: str | None = None, out: Path | None = None) -> Accelerator:
    """An accelerator with this precision (no, bf16, fp16) and tracker; `out` is the tracker's directory.

    Raises UsageError if the tracker is not installed or the device does not support the precision.
    """
    # Accelerate keeps its state per process; a second run in the same process may use another precision.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(mixed_precision=precision, log_with=tracker, project_dir=out)
    except ValueError as error:
        what = f"--tracker {tracker}" if tracker else f"--precision {precision}"
        raise UsageError(f"{what}: {str(error).splitlines()[0]}") from error
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise UsageError("--precision fp16: expected a GPU; on a CPU use bf16")
    if tracker and not accelerator.log_with:
        raise UsageError(f"--tracker {tracker}: not installed, run 'pip install {tracker}'")
    return accelerator


def check_engine(accelerator: Accelerator) -> None:
    """Raise UsageError if accelerate is configured for an engine that shards parameters."""
    if accelerator.distributed_type in SHARDING:
        kind = accelerator.distributed_type.value
        raise UsageError(f"accelerate is configured for {kind}: expected one process or data parallelism (MULTI_GPU)")
