"""The trained model as a program for others to run: model.onnx, and model.pt2 of torch.export."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
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
"""formats of programs, and the packages that writing and checking them takes"""


def check_installed(formats: list[str]) -> None:
    """Raise UsageError where a format needs a package that is not installed: before training, not after it."""
    for name in formats:
        missing = [package for package in NEEDED.get(name, ()) if find_spec(package) is None]
        if missing:
            raise UsageError(f"export {name}: needs {', '.join(missing)}: pip install 'makeweight[{name}]'")


def write_programs(trainer: Trainer, formats: list[str], out: Path) -> dict[str, int]:
    """Write model.onnx and model.pt2, those of them that are asked for, on one process. The bytes of each by its name.

    The input is `input` and the output `logits`, of any batch size. Raises MakeweightError for a model that torch
    cannot export.
    """
    sizes = {}
    for name in formats:
        if name in NEEDED:
            path = out / f"model.{name}"
            model, batch = program(trainer), first_two(trainer.sample_batch())
            with explained(path.name), written_aside(path) as aside:
                aside.write_bytes(onnx_bytes(model, batch) if name == "onnx" else pt2_bytes(model, batch))
            sizes[path.name] = path.stat().st_size
    return sizes


def program(trainer: Trainer) -> nn.Module:
    """A copy of the model as plugins want it exported: on the CPU, in eval, every parametrization realised."""
    model = copy.deepcopy(trainer.model).cpu().eval().requires_grad_(False)
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            _realise(module)
    trainer.hook.on_program(trainer=trainer, model=model)
    return model


def _realise(module: nn.Module) -> None:
    """What the parametrizations of a copy give, in their place.

    torch's own `remove_parametrizations` would take the property from the class, which the copy shares with the
    model that it was made of.
    """
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        setattr(module, name, nn.Parameter(value, requires_grad=False))


class Logits(nn.Module):
    """A model that returns only its logits, where it returns an object that has them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        logits: Tensor = logits_of(self.model(*inputs, **named))
        return logits


def first_two(batch: Any) -> Any:
    """The inputs of two examples on the CPU: as a tuple of one tensor, or by name without the labels.

    Two, since torch.export takes a dimension of one for a constant.
    """
    if isinstance(batch, Mapping):
        return {name: each[:2].cpu() for name, each in batch.items() if name != "labels" and isinstance(each, Tensor)}
    return (batch[0][:2].cpu(),)


def onnx_bytes(model: nn.Module, inputs: Any) -> bytes:
    """The model as an ONNX file, its weights inside."""
    model, arguments, named, shapes = _call(model, inputs)
    program = torch.onnx.export(
        model, arguments, kwargs=named, input_names=list(named) or ["input"], output_names=["logits"],
        dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    assert program is not None
    proto: bytes = program.model_proto.SerializeToString()
    return proto


def pt2_bytes(model: nn.Module, inputs: Any) -> bytes:
    """The model as a file of torch.export."""
    model, arguments, named, shapes = _call(model, inputs)
    exported = torch.export.export(model, arguments, kwargs=named, dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    return buffer.getvalue()


def _call(model: nn.Module, inputs: Any) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Any]:
    """The model, what it is called with, and that the first dimension of each input is free."""
    arguments, named = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    with torch.no_grad():
        output = model(*arguments, **named)
    batch = {0: torch.export.Dim("batch")}
    if isinstance(output, Tensor):
        return model, arguments, named, dict.fromkeys(named, batch) or (batch,) * len(arguments)
    shapes = {"named": dict.fromkeys(named, batch)} if named else {"inputs": (batch,) * len(arguments)}
    return Logits(model), arguments, named, shapes


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Keep torch's exporters quiet, and say in one line what they could not do."""
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except MakeweightError:
        raise
    except Exception as error:
        cause = error.__cause__ or error  # the exporter's own message is advice on how to debug it
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise MakeweightError(f"{name} cannot be written, torch does not export this model: {reason}") from error
