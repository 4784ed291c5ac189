"""Images made ready for a model: resized, normalised and augmented, all at once in memory or one by one."""

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
"""mean and standard deviation by channel, of pixels in 0..1"""


MEMORY = 2 << 30
"""bytes of float32 images of one split up to which it is held in memory"""


@dataclass
class Images:
    """Images in memory: uint8 [N, C, H, W] and their classes, int64 [N]."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index], int(self.labels[index])

    def subset(self, indices: Tensor) -> Images:
        return Images(self.pixels[indices], self.labels[indices])


class Transformed(Dataset[Any]):
    """A data set of (image, class) whose images go through a transform one by one.

    `plain` gives the same images without augmentation, where `unaugmented` says how they are made.
    """

    def __init__(self, data: Any, transform: Any, unaugmented: Any = None) -> None:
        self.data, self.transform, self.unaugmented = data, transform, unaugmented

    def plain(self) -> Transformed:
        return self if self.unaugmented is None else Transformed(self.data, self.unaugmented)

    @property
    def targets(self) -> Any:
        """The classes of all examples, None where only reading the images tells."""
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
    """A split with images [C, size, size], normalised and augmented: in memory as float32, or read one by one."""
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
    """Crop, mirror and AutoAugment (Cubuk et al. 2019) for one uint8 image [C, size, size], then normalise.

    The policy is CIFAR's for small images and ImageNet's else.
    """
    from torchvision.transforms import v2

    policy = v2.AutoAugmentPolicy.CIFAR10 if size <= 64 else v2.AutoAugmentPolicy.IMAGENET
    crop = [v2.RandomCrop(size, padding=max(1, size // 8)), v2.RandomHorizontalFlip()]
    return v2.Compose([*crop, v2.AutoAugment(policy), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*statistics)])


def file_transform(size: int, statistics: Statistics, augment: str) -> Any:
    """What is done to one image (PIL, or uint8 [C, H, W]) that is read when it is needed."""
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
    """PIL image or uint8 tensor → uint8 [C, size, size]: the shorter side resized, the middle cut out."""
    from torchvision.transforms import v2

    return v2.Compose([v2.PILToTensor(), v2.Resize(size, antialias=True), v2.CenterCrop(size)])
