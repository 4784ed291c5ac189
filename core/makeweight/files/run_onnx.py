"""Runs an ONNX model with onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path
from threading import Timer
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MakeweightError, UsageError
from ..references import import_installed

SECONDS = 600.0
"""default time limit per batch in seconds, since a graph may contain an endless loop"""
NOTHING_LOGGED = 4
"""log severity level of onnxruntime (fatal); its errors are raised and shown anyway"""
FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")
"""accepted types of the first output"""


class OnnxModel(nn.Module):
    """Runs an ONNX graph, from a file or from bytes, as a module: the graph's inputs in, its first output out.

    It uses as many threads as torch. Raises UsageError if onnxruntime is not installed, and if the inputs do not fit
    the graph. Raises MakeweightError if the file cannot be read, if a batch takes more than `seconds`, or if the first
    output is not a floating-point tensor with one row per example.
    """

    def __init__(self, source: Path | bytes, seconds: float = SECONDS) -> None:
        super().__init__()
        self.seconds = seconds
        shown = self.shown = source if isinstance(source, Path) else "an ONNX program"
        try:
            onnxruntime: Any = import_installed("onnxruntime")
        except ImportError as error:
            raise UsageError(f"{shown} needs onnxruntime: pip install 'makeweight[onnx]'") from error
        self._settings_of_run = onnxruntime.RunOptions
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = torch.get_num_threads(), NOTHING_LOGGED
        try:
            graph = source if isinstance(source, bytes) else str(source)
            only = ["CPUExecutionProvider"]  # and no fallback, which would print to standard output
            self.session = onnxruntime.InferenceSession(graph, settings, providers=only, enable_fallback=0)
        except Exception as error:  # onnxruntime has one exception class per status
            raise MakeweightError(f"{shown} cannot be read: {str(error).splitlines()[0]}") from error
        outputs = self.session.get_outputs()
        if not outputs or outputs[0].type not in FLOATS:
            given = f"a {outputs[0].type}" if outputs else "nothing"
            raise MakeweightError(f"{shown} returns {given}: expected logits, a floating-point tensor")

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        names = [each.name for each in self.session.get_inputs()]
        if named:
            if missing := [name for name in names if name not in named]:
                raise UsageError(f"{self.shown} takes {', '.join(names)}: the data gives no {missing[0]!r}")
            return {"logits": self(*(named[name] for name in names))}
        if len(names) != len(inputs):
            raise UsageError(f"{self.shown} takes {len(names)} inputs, the data gives {len(inputs)}")
        arrays = {name: each.cpu().contiguous().numpy() for name, each in zip(names, inputs, strict=True)}
        settings = self._settings_of_run()
        settings.log_severity_level = NOTHING_LOGGED
        too_long = Timer(self.seconds, setattr, (settings, "terminate", True))
        too_long.daemon = True
        too_long.start()
        try:
            output = self.session.run([self.session.get_outputs()[0].name], arrays, settings)[0]
        except Exception as error:  # any of onnxruntime's exception classes
            if settings.terminate:
                raise MakeweightError(f"{self.shown} took more than {self.seconds:g} s for a batch") from error
            takes = ", ".join(f"{each.shape} {each.type}" for each in self.session.get_inputs())
            given = ", ".join(f"{list(each.shape)} {each.dtype}" for each in inputs)
            raise UsageError(f"{self.shown} takes {takes}, but the data has {given}: set --data") from error
        finally:
            too_long.cancel()
        if output.shape[:1] != tuple(inputs[0].shape[:1]):
            rows = f"shape {list(output.shape)} for {len(inputs[0])} examples"
            raise MakeweightError(f"{self.shown} returns a tensor of {rows}: expected one row per example")
        return torch.from_numpy(output).to(inputs[0].device)
