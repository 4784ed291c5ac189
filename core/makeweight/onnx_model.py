"""A model in an ONNX file, run by onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import MakeweightError, UsageError


class OnnxModel(nn.Module):
    """Calls the graph of an ONNX file, or of its bytes, as a module: tensors in, in its order, its first output out.

    It runs on as many threads as torch does. Raises UsageError where onnxruntime is not installed and where it is
    called with other inputs than the graph has, MakeweightError for a file that cannot be read.
    """

    def __init__(self, source: Path | bytes) -> None:
        super().__init__()
        shown = self.shown = source if isinstance(source, Path) else "an ONNX program"
        try:
            import onnxruntime
        except ImportError as error:
            raise UsageError(f"{shown} needs onnxruntime: pip install 'makeweight[onnx]'") from error
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = torch.get_num_threads(), 3
        try:
            graph = source if isinstance(source, bytes) else str(source)
            self.session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own, one for each status
            raise MakeweightError(f"{shown} cannot be read: {str(error).splitlines()[0]}") from error

    def forward(self, *inputs: Tensor) -> Any:
        names = [each.name for each in self.session.get_inputs()]
        if len(names) != len(inputs):
            raise UsageError(f"{self.shown} takes {len(names)} inputs, the data gives {len(inputs)}")
        arrays = {name: each.cpu().contiguous().numpy() for name, each in zip(names, inputs, strict=True)}
        try:
            output = self.session.run(None, arrays)[0]
        except Exception as error:  # onnxruntime's own classes again
            takes = ", ".join(f"{each.shape} {each.type}" for each in self.session.get_inputs())
            given = ", ".join(f"{list(each.shape)} {each.dtype}" for each in inputs)
            raise UsageError(f"{self.shown} takes {takes}, the data gives {given}: name its --data") from error
        return torch.from_numpy(output).to(inputs[0].device)
