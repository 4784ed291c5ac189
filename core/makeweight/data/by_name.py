"""Data sets by name, their splits, and images made ready for a model."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError, did_you_mean
from ..references import resolve
from ..seeding import generator, purpose
from .batches import Tensors, as_dataset, subset
from .images import Images, Statistics, ready


@dataclass
class Data:
    """What a run is trained, validated and tested on; `test` is looked at once, when all is done.

    `package.module:function` may return one of these, or (train, test), or (train, validation, test): each of them
    tensors (x, y), a mapping of tensors, or a data set with a length and items.
    """

    train: Any
    test: Any
    validation: Any = None
    num_classes: int | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example: (C, H, W) for images; empty where a batch is a mapping."""
        first = self.train[0]
        image = first[0] if isinstance(first, (tuple, list)) else None
        return tuple(image.shape) if isinstance(image, Tensor) else ()


# Mean and standard deviation by channel of pixels in 0..1, over each training set.
STATISTICS: dict[str, Statistics] = {
    "digits": ([0.3053], [0.3761]),
    "mnist": ([0.1307], [0.3081]),
    "fashion-mnist": ([0.2860], [0.3530]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "cifar100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    "imagefolder": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
NAMES = ["digits", *TORCHVISION]
VALIDATION = purpose("validation")


def check(name: str) -> None:
    """Raise UsageError for a name that no data set has."""
    if ":" not in name and name not in NAMES:
        raise UsageError(
            f"unknown data set {name!r}: {did_you_mean(name, NAMES)} (or imagefolder:DIR, package.module:function)"
        )
    if ":" in name and not name.startswith("imagefolder:"):
        resolve(name, "data set")


def load(name: str, data_dir: str | None = None, *, image_size: int | None = None, smallest: int = 1,
         augment: str = "none", validation: float = 0.1, seed: int = 0) -> Data:  # fmt: skip
    """The data set of that name, split, its images resized and normalised.

    Images smaller than `smallest` are enlarged to it unless `image_size` says otherwise. Raises UsageError for an
    unknown name and for a directory without the data.
    """
    check(name)
    if ":" in name and not name.startswith("imagefolder:"):
        data = _from_reference(name)
        if augment != "none":
            raise UsageError(f"augment {augment}: data of {name} is augmented by its own transforms")
        return _split(data, validation, seed)
    if name.startswith("imagefolder:"):
        from .image_folder import read_folder

        directory = Path(data_dir or ".") / name.removeprefix("imagefolder:")
        splits, size, classes = read_folder(directory, image_size, smallest)
        data = Data(**splits, num_classes=classes)
    else:
        data = _digits() if name == "digits" else _torchvision(name, data_dir)
        size = image_size or max(smallest, data.train.pixels.shape[-1])
    data = _split(data, validation, seed)
    statistics = STATISTICS[name.partition(":")[0]]
    plain = {"test": ready(data.test, statistics, size)}
    if data.validation is not None:
        plain["validation"] = ready(data.validation, statistics, size)
    return replace(data, train=ready(data.train, statistics, size, augment), **plain)


def _digits() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(range(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0)
    pixels = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]  # 0..16 -> [N, 1, 8, 8]
    labels = torch.from_numpy(digits.target).long()
    return Data(Images(pixels[train], labels[train]), Images(pixels[test], labels[test]), num_classes=10)


def _torchvision(name: str, data_dir: str | None) -> Data:
    import torchvision.datasets

    cls = getattr(torchvision.datasets, TORCHVISION[name])
    given = data_dir or os.environ.get("MAKEWEIGHT_DATA")
    root = Path(given or Path.home() / ".cache" / "makeweight")
    try:
        train, test = cls(root, train=True), cls(root, train=False)
    except (OSError, ValueError, EOFError, AssertionError) as error:
        raise UsageError(f"data_dir {root}: its {name} cannot be read: {error or type(error).__name__}") from error
    except RuntimeError as error:
        if given:
            raise UsageError(
                f"data_dir {root}: no {name} there (it is searched as torchvision lays it out); without --data-dir "
                "it is downloaded"
            ) from error
        _download(cls, root, name)
        train, test = cls(root, train=True), cls(root, train=False)
    return Data(_images(train), _images(test), num_classes=len(train.classes))


def _download(cls: Any, root: Path, name: str) -> None:
    """Download aside and move into place, so that what is broken off leaves nothing that looks whole."""
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root, prefix=".download-") as aside:
        try:
            cls(aside, download=True)
        except Exception as error:
            raise UsageError(f"data {name} cannot be downloaded: {error}; or name its place with --data-dir") from error
        for part in Path(aside).iterdir():
            part.replace(root / part.name)


def _images(dataset: Any) -> Images:
    pixels = torch.as_tensor(dataset.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.as_tensor(dataset.targets).long())


def _from_reference(name: str) -> Data:
    result = resolve(name, "data set")()
    if not isinstance(result, Data):
        if not (isinstance(result, tuple) and len(result) in (2, 3)):
            raise UsageError(f"data set {name} gave a {type(result).__name__}: expected (train, test) or a Data")
        result = Data(result[0], result[-1], result[1] if len(result) == 3 else None)
    splits: dict[str, Any] = {
        split: as_dataset(value, f"{split} of {name}")
        for split in ("train", "validation", "test")
        if (value := getattr(result, split)) is not None
    }
    result = replace(result, **splits)
    return result if result.num_classes else replace(result, num_classes=_count_classes(result.train))


def _count_classes(train: Any) -> int | None:
    if isinstance(train, Tensors) and isinstance(train.columns, tuple) and not train.columns[-1].is_floating_point():
        return int(train.columns[-1].max()) + 1
    return len(train.classes) if hasattr(train, "classes") else None


def _split(data: Data, validation: float, seed: int) -> Data:
    """Hold a part of the training data out for validation, unless the data comes with a split of its own."""
    if data.validation is not None or validation == 0:
        return data
    examples = len(data.train)
    count = round(validation * examples) if validation < 1 else int(validation)
    if not 0 < count < examples:
        raise UsageError(f"validation {validation:g}: expected between 1 and {examples - 1} of the {examples} examples")
    order = torch.randperm(examples, generator=generator(seed, VALIDATION))
    return replace(data, train=_subset(data.train, order[count:]), validation=_subset(data.train, order[:count]))


def _subset(data: Any, indices: Tensor) -> Any:
    return data.subset(indices) if isinstance(data, Images) else subset(data, indices)
