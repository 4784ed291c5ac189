"""Weights that people start from: those of torchvision and timm by name, and PyTorch's own files.

`--weights` names them: `pretrained`, `torchvision:ResNet18_Weights.IMAGENET1K_V1`, `hf:REPO@revision`, or a file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError, did_you_mean
from ..options import PICKLES
from ..references import import_installed
from .by_name import is_reference

PRETRAINED, TORCHVISION, TIMM, HUB = "pretrained", "torchvision:", "timm:", "hf:"
AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""torchvision's models with auxiliary classifiers, which training here does without, and their names"""
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""names in torchvision's files of DenseNet, `norm.1.weight` for `norm1.weight`"""


@dataclass(frozen=True)
class Trained:
    """Weights of a library's model: the library's name for them, the statistics of their input, and a loader.

    `statistics` are mean and standard deviation by channel of pixels in 0..1. `load(in_channels)` returns the state
    dict, downloaded into the library's cache if it is not there. It raises UsageError if that fails.
    """

    name: str
    statistics: tuple[list[float], list[float]]
    load: Callable[[int], dict[str, Tensor]]


def check(model: str, weights: str | None) -> None:
    """Raise UsageError for weights that the model cannot start from, as far as their names tell, before data is read.

    Also raises it for a timm model with a tag, which names trained weights, if no weights are given.
    """
    tagged = model.removeprefix(TIMM) if model.startswith(TIMM) else ""
    if "." in tagged and weights is None:
        raise UsageError(
            f"model {model} names trained weights: expected --weights pretrained with it; to train from random weights "
            f"leave the tag out, --model {TIMM}{tagged.partition('.')[0]}"
        )
    if weights is not None and weights.startswith(HUB):
        split_repository(weights)
    elif weights is not None and of_library(model, weights) is None and not Path(weights).exists():
        raise UsageError(
            f"weights {weights}: there is no such file: expected a .safetensors file, {', '.join(PICKLES)}, "
            f"a run directory, {PRETRAINED}, {TORCHVISION}NAME, or {HUB}REPO"
        )


def split_repository(weights: str) -> tuple[str, str | None]:
    """The repository and the revision of `hf:REPO@revision`. Raises UsageError for any other form."""
    found = re.fullmatch(r"hf:([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?", weights)
    if found is None:
        raise UsageError(f"weights {weights}: expected {HUB}ORGANISATION/NAME or {HUB}ORGANISATION/NAME@REVISION")
    return found[1], found[2]


def of_library(model: str, weights: str | None) -> Trained | None:
    """The weights of torchvision or timm that `--weights` names, or None if it names a file or a repository.

    Raises UsageError for weights that the library does not have.
    """
    if weights is not None and weights.startswith(TORCHVISION):
        return _of_torchvision(weights.removeprefix(TORCHVISION), weights)
    if weights != PRETRAINED:
        return None
    if model.startswith(TIMM):
        return _of_timm(model)
    from torchvision.models import get_model_weights, list_models

    if is_reference(model) or model not in list_models():
        raise UsageError(
            f"weights {PRETRAINED}: model {model} has no trained weights that are known by its name: expected a "
            f"torchvision model or timm:NAME, or a file of weights"
        )
    return _of_torchvision(str(get_model_weights(model).DEFAULT), f"{PRETRAINED} of {model}")


def _of_torchvision(name: str, given: str) -> Trained:
    import torchvision.models as library

    models = {library.get_model_weights(each).__name__: each for each in library.list_models(module=library)}
    kind, _, member = name.partition(".")
    if kind not in models or member not in library.get_model_weights(models[kind]).__members__:
        members = [f"{each}.{one}" for each in models for one in library.get_model_weights(models[each]).__members__]
        raise UsageError(f"weights {given}: torchvision has no such weights: {did_you_mean(name, members)}")
    model, weights = models[kind], library.get_model_weights(models[kind])[member]
    preset: Any = weights.transforms()

    def load(in_channels: int) -> dict[str, Tensor]:
        extra: dict[str, Any] = {"aux_logits": True, "init_weights": False} if model in AUXILIARY else {}
        with _explained(f"weights {given}"), torch.random.fork_rng():
            # torchvision's own loading unpickles everything; the model adapts names and buffers of old files.
            state = weights.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
            )
            whole = library.get_model(model, weights=None, num_classes=len(weights.meta["categories"]), **extra)
            whole.load_state_dict({OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in state.items()})
        return {
            key: tensor for key, tensor in whole.state_dict().items() if not key.startswith(AUXILIARY.get(model, ()))
        }

    return Trained(f"{kind}.{weights.name}", (list(preset.mean), list(preset.std)), load)


def _of_timm(model: str) -> Trained:
    timm: Any = import_installed("timm")
    short = model.removeprefix(TIMM)
    settings: Any = timm.models.get_pretrained_cfg(short)
    if settings is None or not settings.has_weights:
        raise UsageError(f"weights {PRETRAINED}: timm has no trained weights of {short}")

    def load(in_channels: int) -> dict[str, Tensor]:
        if in_channels != settings.input_size[0] != 3:
            raise UsageError(
                f"weights {PRETRAINED}: {short} takes {settings.input_size[0]} channels, the data has {in_channels}"
            )
        with _explained(f"weights {PRETRAINED} of {model}"), torch.random.fork_rng():
            # With its own number of classes, so that timm is strict: only its first layer is adapted to the channels.
            whole: nn.Module = timm.create_model(short, pretrained=True, in_chans=in_channels)
        return dict(whole.state_dict())

    tag = f".{settings.tag}" if settings.tag else ""
    return Trained(f"timm's {short.partition('.')[0]}{tag}", (list(settings.mean), list(settings.std)), load)


def rescale_input(model: nn.Module, name: str, weights: str | None) -> None:
    """Let torchvision's GoogLeNet and Inception v3 convert ImageNet's normalisation to that of their trained weights.

    torchvision does so itself with `weights=…`. It is not in the state dict, so `makeweight.load` cannot restore it.
    """
    if name in AUXILIARY and weights is not None and (weights == PRETRAINED or weights.startswith(TORCHVISION)):
        model.transform_input = True  # type: ignore[assignment]


def is_pickle(path: str) -> bool:
    """Whether a file is PyTorch's own by its name."""
    return path.lower().endswith(PICKLES)


def read_pickle(path: str | Path) -> Any:
    """The content of a file that torch.save wrote, if it holds nothing but tensors, numbers, text and tables of them.

    argparse.Namespace, which training scripts often store, is accepted too. Raises UsageError for anything else.
    """
    where = f"weights {path}"
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise UsageError(f"{where} needs more memory than there is") from error
    except Exception as error:  # pickle, zip and torch raise errors of many kinds
        expected = "expected a state dict alone, torch.save(model.state_dict(), …)"
        if found := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
            raise UsageError(f"{where} holds objects of {found[1]}, not only tensors: {expected}") from error
        if "TorchScript" in str(error):
            raise UsageError(f"{where} is a TorchScript program: {expected}") from error
        raise UsageError(f"{where} is damaged, or not a file that torch.save wrote: {expected}") from error


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn any exception of a library's loading into a UsageError of one line."""
    try:
        yield
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(f"{what} cannot be loaded: {reason}") from error
