"""Making the accelerator, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from .errors import UsageError


def new_accelerator(precision: str, tracker: str | None = None, out: Path | None = None) -> Accelerator:
    """An accelerator in this precision, that logs to this tracker. Raises UsageError for what is not there."""
    # Accelerate keeps one state for the process; a second run in it may have another precision.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(mixed_precision=precision, log_with=tracker, project_dir=out)
    except ValueError as error:
        what = f"--tracker {tracker}" if tracker else f"--precision {precision}"
        raise UsageError(f"{what}: {str(error).splitlines()[0]}") from error
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise UsageError("--precision fp16: expected a GPU for it; bf16 works on a CPU")
    if tracker and not accelerator.log_with:
        raise UsageError(f"--tracker {tracker}: it is not installed: pip install {tracker}")
    return accelerator
