"""Load teachers as frozen models: from files, from torchvision, or from a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from makeweight.plugin import (
    UsageError,
    build_model,
    did_you_mean,
    find_first_tensor,
    is_export,
    is_reference,
    load,
    load_any,
    restore,
)

from .trace import Trace

INITIAL = "initial"
TORCHVISION = "torchvision:"


def check_name(name: str) -> None:
    """Raise UsageError for a name that is neither a file, `initial`, a torchvision model nor `module:function`."""
    if not (name == INITIAL or Path(name).is_file() or _is_torchvision(name) or is_reference(name)):
        raise UsageError(f"kd.teacher {name}: expected an exported model, there is no such file")


def read_teacher(name: str, architecture: str | None, student: Trace, original: Callable[[], nn.Module]) -> Trace:
    """Load a teacher, frozen and on the device of the student's examples, and trace it on those examples.

    `name` is a file (an export, or any safetensors file), `torchvision:NAME[:WEIGHTS]`, the name of a torchvision
    model, or `package.module:function`, which returns a trained model. A file is loaded into the model that
    `architecture` names, or into the student's original architecture, built by `original`. Raises UsageError if
    there is no such teacher, if it cannot run on the examples, or if its number of classes differs from the student's;
    MakeweightError for a file that is damaged or belongs to another architecture.
    """
    check_name(name)
    if Path(name).is_file():
        model = _from_file(Path(name), architecture, student, original)
    elif _is_torchvision(name):
        model = from_torchvision(name.removeprefix(TORCHVISION))
    else:
        model = _build(name, student)
    teacher = _trace(frozen(model.to(find_first_tensor(student.batch).device)), name, student)
    _check_classes(name, teacher.classes, student)
    return teacher


def frozen(model: nn.Module) -> nn.Module:
    """The model itself, in eval mode and without gradients."""
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    return model


def from_torchvision(name: str) -> nn.Module:
    """A trained torchvision model: `resnet50`, or with named weights `resnet50:IMAGENET1K_V2`.

    Raises UsageError for an unknown model or weights, and where the download fails.
    """
    from torchvision.models import get_model, list_models

    architecture, _, weights = name.partition(":")
    if architecture not in list_models():
        near = did_you_mean(architecture, list_models())
        raise UsageError(f"kd.teacher torchvision:{name}: no such model: {near}")
    try:
        model: nn.Module = get_model(architecture, weights=weights or "DEFAULT")
    except Exception as error:  # an unknown name of weights, or any failure of a download
        reason = str(error).partition("\n")[0]
        raise UsageError(f"kd.teacher torchvision:{name}: cannot load its weights: {reason}") from error
    return model


def _trace(model: nn.Module, name: str, student: Trace) -> Trace:
    """Trace a teacher on the student's examples. Raises UsageError where it cannot run on them."""
    try:
        return student.of(model)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"kd.teacher {name}: it cannot run on the student's examples ({reason})") from error


def _from_file(path: Path, architecture: str | None, student: Trace, original: Callable[[], nn.Module]) -> nn.Module:
    model = original() if architecture is None else _build(architecture, student)
    tensors = load_any(path)
    last = _trace(model.to(find_first_tensor(student.batch).device), str(path), student).last_layer.name
    weight = tensors.get(f"{last}.weight")
    if weight is not None:
        _check_classes(str(path), weight.shape[0], student)
    if is_export(path):
        return load(path, model)
    restore(model, tensors, str(path))
    return model


def _build(architecture: str, student: Trace) -> nn.Module:
    """Build a model by name, for the student's input shape and classes."""
    model: nn.Module = build_model(architecture, tuple(find_first_tensor(student.batch).shape[1:]), student.classes)
    return model


def _check_classes(name: str, classes: int, student: Trace) -> None:
    if classes != student.classes:
        raise UsageError(f"kd.teacher {name}: it has {classes} classes: expected the student's {student.classes}")


def _is_torchvision(name: str) -> bool:
    from torchvision.models import list_models

    return name.startswith(TORCHVISION) or name in list_models()
