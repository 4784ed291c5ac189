"""Gives a model the weights that `--weights` names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from ..data import by_name as datasets
from ..data.by_name import Data
from ..errors import MakeweightError
from ..files import hub
from ..files.artifact import is_export, read
from ..loading import decode, load_any, load_plain
from ..models import pretrained
from ..models.pretrained import Trained
from ..models.weight_matching import find_state, fit, left_out, without_prefixes
from ..options import Options
from .verb import file_of_run


def give_weights(model: nn.Module, options: Options, data: Data) -> list[str]:
    """Give a newly built model the weights that `--weights` names. Returns lines for the user on what was done.

    A classifier for another number of classes than the data has keeps its initial values. Raises UsageError if there
    are no such weights, and MakeweightError if they are damaged or belong to another model.
    """
    weights = str(options.weights)
    remarks: list[str] = []
    if trained := pretrained.of_library(options.model, weights):
        tensors = trained.load(data.input_shape[0] if data.input_shape else 3)
        where = f"weights {weights}"
        remarks.append(trained.name)
    elif weights.startswith(pretrained.HUB):
        tensors, where = _of_hub(weights), f"weights {weights}"
    elif pretrained.is_pickle(weights):
        where = f"weights {weights}"
        tensors, remark = find_state(pretrained.read_pickle(weights), where)
        remarks += [remark] if remark else []
    else:
        path = file_of_run(Path(weights))
        where = str(path)
        if is_export(path):
            artifact = decode(read(path), path)
            if artifact.records:
                load_plain(path, model)
                return []
            own = set(artifact.own(model.state_dict()))
            tensors = {key: tensor for key, tensor in artifact.tensors.items() if key not in own}
        else:
            tensors = load_any(path)
    tensors, remark = without_prefixes(tensors, model.state_dict().keys())
    left = fit(model, tensors, where, data.num_classes)
    remarks += [remark] if remark else []
    remarks += [left_out(model, tensors, left)] if left else []
    return [f"weights {weights}: {'; '.join(remarks)}"] if remarks else []


def _of_hub(weights: str) -> dict[str, Tensor]:
    """The tensors of a repository. Raises MakeweightError if two of its files have the same tensor."""
    tensors: dict[str, Tensor] = {}
    for path in hub.download(*pretrained.split_repository(weights)):
        part = load_any(path)
        if twice := tensors.keys() & part.keys():
            raise MakeweightError(f"weights {weights}: {sorted(twice)[0]!r} is in two of its files")
        tensors |= part
    return tensors


def on_statistics(data: str, input_shape: Sequence[int], trained: Trained | None) -> list[str]:
    """A line for the user on the normalisation of the data, if it is not the one that data of this name usually has."""
    if trained is None:
        return []
    mean, deviation = ([round(each, 4) for each in numbers] for numbers in trained.statistics)
    expected = f"mean {mean} and standard deviation {deviation}"
    usual = datasets.STATISTICS.get(data.partition(":")[0])
    if usual is None:
        return [f"data {data} is used as it is: the weights expect pixels in 0..1, normalised with {expected}"]
    if usual == trained.statistics:
        return []
    if len(mean) == input_shape[0]:
        return [f"data {data} is normalised with {expected}, as the weights expect"]
    return [f"data {data} is normalised with its own statistics: the weights expect {expected}"]
