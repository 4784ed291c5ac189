"""Teachers: frozen models from files, from torchvision, or from a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from makeweight import UsageError, load
from makeweight.plugin import build_model, did_you_mean, find_first_tensor, is_export, is_reference, load_any, restore

from .trace import Trace

INITIAL = "initial"
TORCHVISION = "torchvision:"


def check_name(name: str) -> None:
    """Raise UsageError for a name that no teacher has."""
    if not (name == INITIAL or Path(name).is_file() or _is_torchvision(name) or is_reference(name)):
        raise UsageError(f"kd.teacher {name}: expected an exported model, there is no such file")


def read_teacher(name: str, architecture: str | None, student: Trace, original: Callable[[], nn.Module]) -> Trace:
    """The teacher of that name, frozen, on the device of the student's examples, and its calls for them.

    A name is that of a file (an export, or any safetensors), `torchvision:NAME[:WEIGHTS]` or a torchvision name, or
    `package.module:function`, which returns a trained model. A file's architecture is the student's `original` one,
    unless it is named. Raises UsageError where there is no such teacher or it knows other classes than the student, and
    MakeweightError for a file that is damaged or another model's.
    """
    check_name(name)
    if Path(name).is_file():
        model = _from_file(Path(name), architecture, student, original)
    elif _is_torchvision(name):
        model = from_torchvision(name.removeprefix(TORCHVISION))
    else:
        model = _built(name, student)
    theirs = _traced(frozen(model.to(find_first_tensor(student.batch).device)), name, student)
    _check_classes(name, theirs.classes, student)
    return theirs


def frozen(model: nn.Module) -> nn.Module:
    """The model in eval and without gradients."""
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    return model


def from_torchvision(name: str) -> nn.Module:
    """A model of torchvision's with trained weights: `resnet50`, or with weights by name, `resnet50:IMAGENET1K_V2`.

    Raises UsageError for a name that it has not, and where the weights cannot be had.
    """
    from torchvision.models import get_model, list_models

    architecture, _, weights = name.partition(":")
    if architecture not in list_models():
        near = did_you_mean(architecture, list_models())
        raise UsageError(f"kd.teacher torchvision:{name}: no such model: {near}")
    try:
        return get_model(architecture, weights=weights or "DEFAULT")
    except Exception as error:  # an unknown name of weights, or any failure of a download
        reason = str(error).partition("\n")[0]
        raise UsageError(f"kd.teacher torchvision:{name}: its weights cannot be had: {reason}") from error


def _traced(model: nn.Module, name: str, student: Trace) -> Trace:
    """A teacher's calls for the student's examples. Raises UsageError where it does not take them."""
    try:
        return student.of(model)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"kd.teacher {name}: it cannot be called on the student's examples ({reason})") from error


def _from_file(path: Path, architecture: str | None, student: Trace, original: Callable[[], nn.Module]) -> nn.Module:
    model = original() if architecture is None else _built(architecture, student)
    tensors = load_any(path)
    last = _traced(model.to(find_first_tensor(student.batch).device), str(path), student).last_layer.name
    known = tensors.get(f"{last}.weight")
    if known is not None:
        _check_classes(str(path), known.shape[0], student)
    if is_export(path):
        return load(path, model)
    restore(model, tensors, str(path))
    return model


def _built(architecture: str, student: Trace) -> nn.Module:
    """A model by name, for the student's examples and classes."""
    return build_model(architecture, tuple(find_first_tensor(student.batch).shape[1:]), student.classes)


def _check_classes(name: str, knows: int, student: Trace) -> None:
    if knows != student.classes:
        raise UsageError(f"kd.teacher {name}: it knows {knows} classes, the student {student.classes}")


def _is_torchvision(name: str) -> bool:
    from torchvision.models import list_models

    return name.startswith(TORCHVISION) or name in list_models()
