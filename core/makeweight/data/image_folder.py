"""Reads image folders with DIR/train/<class>/… and DIR/test or DIR/val, into memory if they fit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import UsageError
from .images import MEMORY, Images, resized

LARGEST = 224
"""maximum height and width of images unless --image-size is given"""


def read_folder(root: Path, image_size: int | None, smallest: int) -> tuple[dict[str, Any], int, list[str]]:
    """The splits of an image folder by name, the image size, and the names of the classes.

    A split is `Images` if all splits fit in memory, otherwise a data set of files. Raises UsageError if the folder has
    no images, or if the classes of the splits differ.
    """
    train = _folder(root, "train")
    tests = [name for name in ("test", "val") if (root / name).is_dir()]
    if not tests:
        raise UsageError(f"image folder {root}: expected a folder test or val next to train")
    splits = {"train": train, "test": _folder(root, tests[0])}
    if "test" in tests and "val" in tests:
        splits["validation"] = _folder(root, "val")
    for name, split in splits.items():
        if split.classes != train.classes:
            odd = sorted(set(split.classes) ^ set(train.classes))[0]
            raise UsageError(
                f"image folder {root}: train and {name} differ in class {odd!r}: expected the same classes"
            )
    size = image_size or max(smallest, min(LARGEST, _smaller_side(train.samples[0][0])))
    largest = max(len(split) for split in splits.values())
    if 3 * 4 * size * size * largest <= MEMORY:
        splits = {name: _in_memory(split, size) for name, split in splits.items()}
    return splits, size, list(train.classes)


def _folder(root: Path, split: str) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(root / split))
    except (FileNotFoundError, OSError) as error:
        raise UsageError(f"image folder {root}: expected images in {split}/<class>/ there") from error


def _smaller_side(path: str) -> int:
    try:
        with Image.open(path) as image:
            return min(image.size)
    except OSError as error:
        raise UsageError(f"image {path} cannot be read: {error}") from error


def _in_memory(folder: Any, size: int) -> Images:
    resize = resized(size)

    def read(sample: tuple[str, int]) -> Tensor:
        try:
            image: Tensor = resize(folder.loader(sample[0]))
            return image
        except OSError as error:
            raise UsageError(f"image {sample[0]} cannot be read: {error}") from error

    pixels = torch.empty(len(folder.samples), 3, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        for row, image in enumerate(pool.map(read, folder.samples, chunksize=64)):
            pixels[row] = image
    return Images(pixels, torch.tensor(folder.targets))
