"""Loads data sets by name, splits them, and prepares their images for a model."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError, did_you_mean
from ..references import resolve
from ..seeding import generator, purpose
from .batches import Tensors, as_dataset, subset
from .images import Images, Statistics, ready
from .loaders import Collated


@dataclass
class Data:
    """The splits of a data set. `test` is evaluated only once, after training.

    Each split is a pair of tensors (x, y), a mapping of tensors, a data set with a length and items, or a
    DataLoader, whose data set, collate function and batch size are used. A function `package.module:function`
    returns a Data, (train, test), or (train, validation, test).
    """

    train: Any
    test: Any
    validation: Any = None
    num_classes: int | None = None
    classes: list[str] | None = None
    """names of the classes, for summary.json and the report"""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of an example, (C, H, W) for images; empty if examples are mappings."""
        first = self.train[0]
        image = first[0] if isinstance(first, (tuple, list)) else None
        return tuple(image.shape) if isinstance(image, Tensor) else ()


# Mean and standard deviation of each channel over the training set, with pixels in 0..1.
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
    """Raise UsageError for an unknown data set name."""
    if ":" not in name and name not in NAMES and not name.endswith(".py"):
        raise UsageError(
            f"unknown data set {name!r}: {did_you_mean(name, NAMES)} (or imagefolder:DIR, package.module:function)"
        )
    if name not in NAMES and not name.startswith("imagefolder:"):
        resolve(name, "data set")


def load(name: str, data_dir: str | None = None, *, image_size: int | None = None, smallest: int = 1,
         augment: str = "none", validation: float = 0.1, seed: int = 0,
         statistics: Statistics | None = None, collate: str | None = None) -> Data:  # fmt: skip
    """Load a data set, split it, and resize and normalise its images.

    Images smaller than `smallest` pixels are enlarged to that size unless `image_size` is given. Raises UsageError for
    an unknown name, and if the directory does not contain the data.
    """
    check(name)
    if ":" in name and not name.startswith("imagefolder:"):
        data = _from_reference(name)
        if augment != "none":
            raise UsageError(f"augment {augment}: expected none, since {name} augments its data itself")
        return collated(_split(data, validation, seed), collate)
    if name.startswith("imagefolder:"):
        from .image_folder import read_folder

        directory = Path(data_dir or ".") / name.removeprefix("imagefolder:")
        splits, size, classes = read_folder(directory, image_size, smallest)
        data = Data(**splits, num_classes=len(classes), classes=classes)
    else:
        data = _digits() if name == "digits" else _torchvision(name, data_dir)
        size = image_size or max(smallest, data.train.pixels.shape[-1])
    data = _split(data, validation, seed)
    own = STATISTICS[name.partition(":")[0]]
    statistics = statistics if statistics is not None and len(statistics[0]) == len(own[0]) else own
    plain = {"test": ready(data.test, statistics, size)}
    if data.validation is not None:
        plain["validation"] = ready(data.validation, statistics, size)
    return collated(replace(data, train=ready(data.train, statistics, size, augment), **plain), collate)


def _digits() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(range(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0)
    pixels = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]  # 0..16 -> [N, 1, 8, 8]
    labels = torch.from_numpy(digits.target).long()
    classes = [str(digit) for digit in range(10)]
    return Data(Images(pixels[train], labels[train]), Images(pixels[test], labels[test]), None, 10, classes)


def _torchvision(name: str, data_dir: str | None) -> Data:
    import torchvision.datasets

    cls = getattr(torchvision.datasets, TORCHVISION[name])
    given = data_dir or os.environ.get("MAKEWEIGHT_DATA")
    root = Path(given or Path.home() / ".cache" / "makeweight")
    try:
        train, test = cls(root, train=True), cls(root, train=False)
    except (OSError, ValueError, EOFError, AssertionError) as error:
        raise UsageError(f"data_dir {root}: {name} cannot be read: {error or type(error).__name__}") from error
    except RuntimeError as error:
        if given:
            raise UsageError(
                f"data_dir {root}: {name} not found (expected torchvision's folder layout); without --data-dir "
                "it is downloaded"
            ) from error
        _download(cls, root, name)
        train, test = cls(root, train=True), cls(root, train=False)
    return Data(_images(train), _images(test), None, len(train.classes), [str(each) for each in train.classes])


def _download(cls: Any, root: Path, name: str) -> None:
    """Download to a temporary folder and then move the files, so that an interrupted download leaves no files."""
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root, prefix=".download-") as aside:
        try:
            cls(aside, download=True)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"data {name} cannot be downloaded: {reason}; name a copy with --data-dir") from error
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
            raise UsageError(f"data set {name} returned a {type(result).__name__}: expected (train, test) or a Data")
        if all(isinstance(each, Tensor | np.ndarray) for each in result):
            raise UsageError(f"data set {name} returned {len(result)} tensors: expected two pairs (x, y)")
        result = Data(result[0], result[-1], result[1] if len(result) == 3 else None)
    if result.train is None or result.test is None:
        missing = "train" if result.train is None else "test"
        raise UsageError(f"data set {name} returned no {missing} data: expected (train, test) or a Data with both")
    splits: dict[str, Any] = {
        split: as_dataset(value, f"{split} of {name}")
        for split in ("train", "validation", "test")
        if (value := getattr(result, split)) is not None
    }
    result = replace(result, **splits)
    result = result if result.num_classes else replace(result, num_classes=_count_classes(result.train))
    names = getattr(result.train, "classes", None) if result.classes is None else result.classes
    fits = isinstance(names, (list, tuple)) and len(names) == result.num_classes
    if result.classes is not None and not fits:
        raise UsageError(f"data set {name}: classes {names}: expected {result.num_classes} names, as num_classes says")
    return replace(result, classes=[str(each) for each in names] if fits and names is not None else None)


def _count_classes(train: Any) -> int | None:
    if isinstance(train, Tensors) and isinstance(train.columns, tuple) and not train.columns[-1].is_floating_point():
        return int(train.columns[-1].max()) + 1
    classes = getattr(train, "classes", None)
    return None if classes is None else len(classes)


def collated(data: Data, collate: str | None) -> Data:
    """The splits with the collate function `package.module:function`. Raises UsageError for splits in memory."""
    if collate is None:
        return data
    function = resolve(collate, "collate")
    splits: dict[str, Any] = {name: getattr(data, name) for name in ("train", "validation", "test")}
    for name, split in splits.items():
        if isinstance(split, Tensors):
            raise UsageError(f"collate {collate}: expected none, since {name} consists of tensors in memory")
        if split is not None:
            splits[name] = Collated(split.data if isinstance(split, Collated) else split, function)
    return replace(data, **splits)


def _split(data: Data, validation: float, seed: int) -> Data:
    """Hold out part of the training data for validation, unless the data set has a validation split."""
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
