"""Resizes, normalises and augments images, as one tensor in memory or one image at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from .augmentation import SHIFT, Augment, crop_flip, shift
from .batches import Tensors

Statistics = tuple[list[float], list[float]]
"""mean and standard deviation of each channel, for pixels in 0..1"""


MEMORY = 2 << 30
"""maximum size in bytes, as float32, of the images of a split that is held in memory"""


@dataclass
class Images:
    """Images in memory: pixels, uint8 [N, C, H, W], and class labels, int64 [N]."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index], int(self.labels[index])

    def subset(self, indices: Tensor) -> Images:
        return Images(self.pixels[indices], self.labels[indices])


class Transformed(Dataset[Any]):
    """A data set of (image, class label) that applies `transform` to each image on access.

    `plain()` is the same data set with the transform `unaugmented`, unless that is None.
    """

    def __init__(self, data: Any, transform: Any, unaugmented: Any = None) -> None:
        self.data, self.transform, self.unaugmented = data, transform, unaugmented

    def plain(self) -> Transformed:
        return self if self.unaugmented is None else Transformed(self.data, self.unaugmented)

    @property
    def targets(self) -> Any:
        """The class labels of all examples, or None if they are unknown without reading the images."""
        if isinstance(self.data, Subset):
            whole = getattr(self.data.dataset, "targets", None)
            return None if whole is None else [whole[index] for index in self.data.indices]
        return getattr(self.data, "targets", getattr(self.data, "labels", None))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        return self.transform(image), label


def ready(data: Any, statistics: Statistics, size: int, augment: str = "none") -> Any:
    """A split with normalised and augmented images [C, size, size]; in memory as float32 if it fits, else on access."""
    fits = isinstance(data, Images) and 4 * data.pixels.shape[1] * size * size * len(data) <= MEMORY
    if not fits:
        return Transformed(data, file_transform(size, statistics, augment), file_transform(size, statistics, "none"))
    pixels = data.pixels
    if pixels.shape[-2:] != (size, size):
        from torchvision.transforms.v2.functional import resize

        pixels = resize(pixels, [size, size], antialias=True)
    if augment == "auto":
        from torchvision.transforms import v2

        plain = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(*statistics)])
        return Transformed(Images(pixels, data.labels), auto_transform(size, statistics), plain)
    mean, deviation = (torch.tensor(each).view(-1, 1, 1) for each in statistics)
    black = (-mean / deviation).flatten()
    functions: dict[str, Augment | None] = {
        "none": None,
        "shift": partial(shift, fill=black),
        "crop-flip": partial(crop_flip, fill=black),
    }
    return Tensors((pixels.float().div_(255).sub_(mean).div_(deviation), data.labels), functions[augment])


def auto_transform(size: int, statistics: Statistics) -> Any:
    """Random crop, flip and AutoAugment (Cubuk et al. 2019) of a uint8 image [C, size, size], then normalisation.

    The policy is that of CIFAR-10 for images of up to 64 pixels, otherwise that of ImageNet.
    """
    from torchvision.transforms import v2

    policy = v2.AutoAugmentPolicy.CIFAR10 if size <= 64 else v2.AutoAugmentPolicy.IMAGENET
    crop = [v2.RandomCrop(size, padding=max(1, size // 8)), v2.RandomHorizontalFlip()]
    return v2.Compose([*crop, v2.AutoAugment(policy), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*statistics)])


def file_transform(size: int, statistics: Statistics, augment: str) -> Any:
    """The transform of an image that is read on access: PIL or uint8 [C, H, W] → float32 [C, size, size]."""
    from torchvision.transforms import v2

    tail = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*statistics)]
    random_crop = [v2.PILToTensor(), v2.RandomResizedCrop(size, antialias=True)]
    if augment == "auto":
        return v2.Compose([*random_crop, auto_transform(size, statistics)])
    if augment == "crop-flip":
        return v2.Compose([*random_crop, v2.RandomHorizontalFlip(), *tail])
    moved = [v2.RandomAffine(0, translate=(SHIFT, SHIFT))] if augment == "shift" else []
    return v2.Compose([resized(size), *moved, *tail])


def resized(size: int) -> Any:
    """PIL image or uint8 tensor → uint8 [C, size, size]: resize the shorter side, then crop the centre."""
    from torchvision.transforms import v2

    return v2.Compose([v2.PILToTensor(), v2.Resize(size, antialias=True), v2.CenterCrop(size)])
