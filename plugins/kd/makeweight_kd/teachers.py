"""Teachers: frozen models from files, from torchvision, from a function, or what the network was."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from makeweight import MakeweightError, UsageError, load, load_tensors
from makeweight.artifact import is_export, load_any
from makeweight.batches import find_first_tensor
from makeweight.errors import did_you_mean
from makeweight.layers import KINDS, weight_name
from makeweight.models import build, is_reference
from makeweight.state import restore

from .trace import Trace

if TYPE_CHECKING:
    from makeweight import Trainer

INITIAL = "initial"
TORCHVISION = "torchvision:"


def read_teacher(trainer: Trainer, name: str, architecture: str | None, student: Trace) -> nn.Module:
    """The teacher of that name in eval, without gradients, on the training's device; no state dict holds it.

    A name is that of a file (an export, or any safetensors), `torchvision:NAME[:WEIGHTS]` or a torchvision name, or
    `package.module:function`, which returns a trained model. A file's architecture is the student's own, unless it is
    named. Raises UsageError where there is no such teacher or it knows other classes than the student, and
    MakeweightError for a file that is damaged or another model's.
    """
    classes = student.logits.shape[1]
    if Path(name).is_file():
        model = _from_file(trainer, Path(name), architecture, classes)
    elif is_reference(name) and not name.startswith(TORCHVISION):
        model = build(name, tuple(find_first_tensor(trainer.sample_batch()).shape[1:]), classes)
    elif _is_torchvision(name):
        model = from_torchvision(name.removeprefix(TORCHVISION))
    else:
        raise UsageError(f"kd.teacher {name}: expected an exported model, there is no such file")
    model = frozen(model.to(trainer.accelerator.device))
    knows = traced(trainer, model, name).logits.shape[1]
    if knows != classes:
        raise _other_classes(name, knows, classes)
    return model


def as_it_was(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A frozen copy of a model with other weights. Raises MakeweightError where they are another model's."""
    teacher = frozen(copy.deepcopy(model))
    try:
        teacher.load_state_dict(dict(state))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise MakeweightError("kd: the checkpoint's initial weights do not fit the model") from error
    return teacher


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
        raise UsageError(
            f"kd.teacher torchvision:{name}: no such model: {did_you_mean(architecture, list_models())}"
        )  # fmt: skip
    try:
        return get_model(architecture, weights=weights or "DEFAULT")
    except Exception as error:  # an unknown name of weights, or any failure of a download
        reason = str(error).partition("\n")[0]
        raise UsageError(f"kd.teacher torchvision:{name}: its weights cannot be had: {reason}") from error


def traced(trainer: Trainer, model: nn.Module, name: str) -> Trace:
    """A teacher's calls for a few examples. Raises UsageError where it does not take them."""
    try:
        return trace_of(trainer, model)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"kd.teacher {name}: it cannot be called on the student's examples ({reason})") from error


def trace_of(trainer: Trainer, model: nn.Module, examples: int = 4) -> Trace:
    """A model's calls for the first examples of the training data."""
    from accelerate.utils import slice_tensors

    return Trace(model, trainer.task.forward, slice_tensors(trainer.sample_batch(), slice(0, examples)))


def _from_file(trainer: Trainer, path: Path, architecture: str | None, classes: int) -> nn.Module:
    ours = is_export(path)
    if architecture is None:
        model = trainer.fresh_model()
    else:
        model = build(architecture, tuple(find_first_tensor(trainer.sample_batch()).shape[1:]), classes)
    known = (load_tensors(path) if ours else load_any(path)).get(weight_name(_last_layer(trainer, model, path)))
    if known is not None and known.shape[0] != classes:
        raise _other_classes(str(path), known.shape[0], classes)
    if ours:
        return load(path, model)
    restore(model, load_any(path), str(path))
    return model


def _last_layer(trainer: Trainer, model: nn.Module, path: Path) -> str:
    """The name of the Linear or Conv that is called last."""
    trace = traced(trainer, model.to(trainer.accelerator.device), str(path))
    modules = dict(model.named_modules())
    return next((name for name in reversed(trace.names) if isinstance(modules[name], KINDS)), "")


def _other_classes(name: str, knows: int, classes: int) -> UsageError:
    return UsageError(f"kd.teacher {name}: it knows {knows} classes, the student {classes}")


def _is_torchvision(name: str) -> bool:
    from torchvision.models import list_models

    return name.startswith(TORCHVISION) or name in list_models()
