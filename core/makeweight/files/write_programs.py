"""Writes the trained model as a program: model.onnx, and model.pt2 of torch.export."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import MakeweightError, UsageError
from ..task import logits_of
from .writing import written_aside

if TYPE_CHECKING:
    from ..trainer import Trainer

NEEDED = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "pt2": ()}
"""program formats, and the packages required to write and check them"""


def check_installed(formats: list[str]) -> None:
    """Raise UsageError if a format needs a package that is not installed. Called before training."""
    for name in formats:
        missing = [package for package in NEEDED.get(name, ()) if find_spec(package) is None]
        if missing:
            raise UsageError(f"export {name}: needs {', '.join(missing)}: pip install 'makeweight[{name}]'")


def programs_among(formats: list[str]) -> list[str]:
    """The formats that are programs: all but the export itself."""
    return [name for name in formats if name in NEEDED]


def write_program(trainer: Trainer, form: str, out: Path) -> Path:
    """Write the trained model as `model.<form>` to the folder `out`, on one process. Returns the path.

    The ONNX input is `input`, or the names of a batch mapping, and the output is `logits`. The batch size is dynamic.
    Raises MakeweightError if torch cannot export the model.
    """
    path = out / f"model.{form}"
    content = program_bytes(trainer, form, path.name)
    with written_aside(path) as aside:
        aside.write_bytes(content)
    return path


def program_bytes(trainer: Trainer, form: str, shown: str) -> bytes:
    """The bytes of a program. Raises MakeweightError, with `shown` as the program's name, if torch cannot export it."""
    with explained(shown):
        model, batch = program(trainer), first_two(trainer.sample_batch())
        return onnx_bytes(model, batch) if form == "onnx" else pt2_bytes(model, batch)


def program(trainer: Trainer) -> nn.Module:
    """A copy of the model after `on_program`: on the CPU, in eval mode, without parametrizations."""
    model = copy.deepcopy(trainer.model).cpu().eval().requires_grad_(False)
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            _realise(module)
    trainer.hook.on_program(trainer=trainer, model=model)
    return model


def _realise(module: nn.Module) -> None:
    """Replace the parametrizations of a module by their current values.

    torch's own `remove_parametrizations` would delete the property from the class, which this copy shares with the
    original module.
    """
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        setattr(module, name, nn.Parameter(value, requires_grad=False))


class Logits(nn.Module):
    """Wraps a model that returns an object with logits; returns only the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        logits: Tensor = logits_of(self.model(*inputs, **named))
        return logits


def first_two(batch: Any) -> Any:
    """The inputs of two examples on the CPU: a tuple of one tensor, or tensors by name without the labels.

    Two examples are needed because torch.export treats a dimension of size 1 as a constant.
    """
    if isinstance(batch, Mapping):
        return {name: each[:2].cpu() for name, each in batch.items() if name != "labels" and isinstance(each, Tensor)}
    return (batch[0][:2].cpu(),)


def onnx_bytes(model: nn.Module, inputs: Any) -> bytes:
    """The model as the bytes of an ONNX file that includes the weights."""
    model, arguments, named, shapes = _call(model, inputs)
    program = torch.onnx.export(
        model, arguments, kwargs=named, input_names=list(named) or ["input"], output_names=["logits"],
        dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    assert program is not None
    model_proto = program.model_proto
    strip(model_proto)
    proto: bytes = model_proto.SerializeToString()
    return proto


def strip(model_proto: Any) -> None:
    """Remove from an ONNX model, in place, what no runtime needs: stack traces, file paths, shapes within the graph.

    torch's exporter writes them for debugging; they may take more bytes than the integer weights.
    """
    graphs = [model_proto.graph, *model_proto.functions]
    for graph in graphs:  # grows by the graphs inside of nodes (If, Loop, Scan)
        del graph.value_info[:], graph.metadata_props[:]
        graph.doc_string = ""
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            graphs += [each for attribute in node.attribute for each in attribute.graphs]
    for value in [*model_proto.graph.input, *model_proto.graph.output, *model_proto.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
    del model_proto.metadata_props[:]
    model_proto.doc_string = ""


def pt2_bytes(model: nn.Module, inputs: Any) -> bytes:
    """The model as the bytes of a torch.export file."""
    model, arguments, named, shapes = _call(model, inputs)
    exported = torch.export.export(model, arguments, kwargs=named, dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    return buffer.getvalue()


def _call(model: nn.Module, inputs: Any) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Any]:
    """The model that returns logits, its positional and named arguments, and dynamic shapes (the batch dimension)."""
    arguments, named = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    with torch.no_grad():
        output = model(*arguments, **named)
    batch = {0: torch.export.Dim("batch")}
    if isinstance(output, Tensor):
        return model, arguments, named, dict.fromkeys(named, batch) or (batch,) * len(arguments)
    shapes = {"named": dict.fromkeys(named, batch)} if named else {"inputs": (batch,) * len(arguments)}
    return Logits(model), arguments, named, shapes


@contextmanager
def explained(name: str, failing: str = "written, torch cannot export this model") -> Iterator[None]:
    """Suppress the output of torch's exporters, and turn their exceptions into a MakeweightError of one line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch logs what its exporter could not do, too
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except MakeweightError:
        raise
    except Exception as error:
        cause = error.__cause__ or error  # the exporter's own message only explains how to debug it
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise MakeweightError(f"{name} cannot be {failing}: {reason}") from error
    finally:
        logging.disable(before)
