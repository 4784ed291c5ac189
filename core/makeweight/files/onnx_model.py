"""A model in an ONNX file, run by onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path
from threading import Timer
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MakeweightError, UsageError
from ..references import import_installed

SECONDS = 600.0
"""that a call may take, a batch: a graph may loop without end"""
NOTHING_LOGGED = 4
"""severity from which onnxruntime writes lines of its own; what it raises is shown"""
FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")
"""types of a first output that are taken"""


class OnnxModel(nn.Module):
    """Calls the graph of an ONNX file, or of its bytes, as a module: tensors in, in its order, its first output out.

    It runs on as many threads as torch does. Raises UsageError where onnxruntime is not installed and where it is
    called with other inputs than the graph has. Raises MakeweightError for a file that cannot be read, whose first
    output is no tensor of floating-point numbers with a row for each example, or that takes more than `seconds` a call.
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
            only = ["CPUExecutionProvider"]  # without a second try, which prints to standard output
            self.session = onnxruntime.InferenceSession(graph, settings, providers=only, enable_fallback=0)
        except Exception as error:  # onnxruntime raises classes of its own, one for each status
            raise MakeweightError(f"{shown} cannot be read: {str(error).splitlines()[0]}") from error
        outputs = self.session.get_outputs()
        if not outputs or outputs[0].type not in FLOATS:
            given = f"a {outputs[0].type}" if outputs else "nothing"
            raise MakeweightError(f"{shown} gives {given}: expected logits, a tensor of floating-point numbers")

    def forward(self, *inputs: Tensor) -> Any:
        names = [each.name for each in self.session.get_inputs()]
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
        except Exception as error:  # onnxruntime's own classes again
            if settings.terminate:
                raise MakeweightError(f"{self.shown} took more than {self.seconds:g} s for a batch") from error
            takes = ", ".join(f"{each.shape} {each.type}" for each in self.session.get_inputs())
            given = ", ".join(f"{list(each.shape)} {each.dtype}" for each in inputs)
            raise UsageError(f"{self.shown} takes {takes}, the data gives {given}: name its --data") from error
        finally:
            too_long.cancel()
        if output.shape[:1] != tuple(inputs[0].shape[:1]):
            rows = f"shape {list(output.shape)} for {len(inputs[0])} examples"
            raise MakeweightError(f"{self.shown} gives a tensor of {rows}: expected a row for each")
        return torch.from_numpy(output).to(inputs[0].device)
