"""Images beside masks of class numbers, in any folder: for segmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from entropatch.data.base import DataError
from entropatch.data.folders import TEST_SPLITS, existing
from entropatch.data.images import image_files, load_image, printable
from entropatch.data.masks import MaskError, check_size, masks_by_stem
from entropatch.data.seeding import derived_seed, seeded

IGNORED = 255
IMAGES, MASKS, NAMES = "images", "masks", "classes.txt"
EVERY = 5  # without splits every fifth image is tested on

Transform = Callable[[Image.Image, np.ndarray], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MaskedImages:
    """Images and their masks, as files; read when asked for.

    Attributes:
        images, masks: one mask for each image.
        classes: how many there are; masks hold numbers below that, and 255.
    """

    images: Sequence[Path]
    masks: Sequence[Path]
    classes: int

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB. Raises ImageError for a damaged one."""
        return load_image(self.images[index])

    def pair(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Image number `index`, RGB, and its mask, (height, width), uint8.

        Raises:
            ImageError: a damaged file. MaskError: a mask of another size, kind, or with numbers of no class.
        """
        image, mask = self.image(index), load_classes(self.masks[index], self.classes)
        check_size(mask, image, printable(self.masks[index]))
        return image, mask


@dataclass(frozen=True)
class SegmentationSet:
    """Images and masks in two splits.

    Attributes:
        classes: their names; mask number i means classes[i].
        train, test: the two splits.
        description: how it was opened, as JSON holds it.
    """

    classes: tuple[str, ...]
    train: MaskedImages
    test: MaskedImages
    description: Mapping[str, Any] = field(default_factory=dict)


def open_mask_folder(root: str | Path, classes: int | Sequence[str] | None = None) -> SegmentationSet:
    """A segmentation folder: image and mask are files of the same name but for their suffix.

        root/train/images, root/train/masks, root/val/images, root/val/masks     or
        root/images, root/masks                                                  every fifth by name is tested on

    "val" may be "validation" or "test". Masks are 8-bit grey or palette images (modes L and P) of class numbers, in the
    image's size; pixels of 255 do not count.

    Args:
        root: the folder.
        classes: how many, or their names; None: a name on each line of root/classes.txt.

    Raises:
        DataError: a folder or the classes are missing.
        ImageError, MaskError: a folder without images; an image without mask, or with several.
    """
    root = existing(Path(root), "mask-folder")
    names = _class_names(root, classes)
    description = {"name": "mask-folder", "root": str(root), "classes": list(names)}
    if (root / IMAGES).is_dir():
        images, masks = _pairs(root)
        test = [i for i in range(len(images)) if i % EVERY == 0]
        train = [i for i in range(len(images)) if i % EVERY]
        if not train:
            raise DataError(f"{root / IMAGES} must hold at least two images, to train on and to test on, but has one.")
        splits = [([images[i] for i in part], [masks[i] for i in part]) for part in (train, test)]
    else:
        splits = [_pairs(_split(root, ("train",))), _pairs(_split(root, TEST_SPLITS))]
    (a, b), (c, d) = splits
    return SegmentationSet(names, MaskedImages(a, b, len(names)), MaskedImages(c, d, len(names)), description)


def load_classes(path: str | Path, classes: int) -> np.ndarray:
    """The class numbers in a mask file: (height, width), uint8; upright as its EXIF orientation says.

    Raises:
        ImageError: not an image that can be read.
        MaskError: not of 8 bits in one channel, or a number that is neither below `classes` nor 255.
    """
    load_image(path)  # with its checks of the file
    with Image.open(path) as image:
        image.load()
        if image.mode not in ("L", "P"):
            raise MaskError(
                f"{printable(path)}: a mask of classes must be grey or of a palette, 8 bits, each value a class "
                f"number, but is of mode {image.mode}; save it as such a PNG."
            )
        numbers = np.asarray(ImageOps.exif_transpose(image))
    wrong = numbers[(numbers >= classes) & (numbers != IGNORED)]
    if len(wrong):
        raise MaskError(
            f"{printable(path)}: a mask must hold class numbers 0 … {classes - 1}, or {IGNORED} for pixels that do not "
            f"count, but holds {wrong[0]}."
        )
    return numbers


def masked_listing_hash(images: MaskedImages) -> str:
    """A hash of the list: the names of images and masks, and their order. No file is read."""
    found = hashlib.sha256()
    for image, mask in zip(images.images, images.masks, strict=True):
        found.update(f"{PurePath(image).name}\t{PurePath(mask).name}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def segmentation_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop_scale: tuple[float, float] | None = None,
    horizontal_flip: float = 0.0,
) -> Transform:
    """Image and mask together to (3, size, size), normalised, and (size, size), int64; masks by the nearest pixel.

    Args:
        size: side of the square that the model sees; without a crop the whole image is resized to it.
        mean, std: of the model's preprocessing.
        crop_scale: share of the area of a random crop, of an aspect from ¾ to 4⁄3, filled up to the square; None for
            the whole image, as in testing.
        horizontal_flip: probability.
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    antialiased: Any = {"antialias": True}
    cut = (
        v2.Resize((size, size), **antialiased)
        if crop_scale is None
        else v2.RandomResizedCrop(size, scale=crop_scale, **antialiased)
    )
    both = v2.Compose([cut, v2.RandomHorizontalFlip(horizontal_flip)] if horizontal_flip else [cut])
    tensor = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])

    def apply(image: Image.Image, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels = tv_tensors.Image(np.asarray(image).transpose(2, 0, 1).copy())
        pixels, numbers = both(pixels, tv_tensors.Mask(torch.from_numpy(mask.copy())))
        return tensor(pixels).as_subclass(Tensor), numbers.as_subclass(Tensor).long()

    return apply


class TrainingMasks(Dataset[Any]):
    """Image and mask by (epoch, number), each with random numbers of its own, so that order and place do not matter."""

    images: MaskedImages
    transform: Transform
    seed: int

    def __init__(self, images: MaskedImages, transform: Transform, seed: int):
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, number = key
        with seeded(derived_seed(self.seed, epoch, number)):
            return self.transform(*self.images.pair(number))


def _pairs(folder: Path) -> tuple[list[Path], list[Path]]:
    for name in (IMAGES, MASKS):
        if not (folder / name).is_dir():
            raise DataError(f"{folder} must hold the folders {IMAGES} and {MASKS}, but has no {name}.")
    images = image_files([folder / IMAGES])
    return images, masks_by_stem(images, folder / MASKS)


def _split(root: Path, names: Sequence[str]) -> Path:
    found = [root / name for name in names if (root / name).is_dir()]
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{root} must hold {IMAGES} and {MASKS}, or these two under train and under one of "
            f"{', '.join(TEST_SPLITS)}; of {', '.join(names)} it has {there}."
        )
    return found[0]


def _class_names(root: Path, classes: int | Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(classes, int) and not isinstance(classes, bool):
        names = [f"class {number}" for number in range(classes)]
    elif classes is not None and not isinstance(classes, (str, bool)):
        names = list(classes)
    elif classes is not None:
        raise ValueError(f"classes must be how many, or their names, but got {classes!r}.")
    elif (root / NAMES).is_file():
        names = [line.strip() for line in (root / NAMES).read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        raise DataError(f"how many classes there are must be said: classes=…, or a name per line in {root / NAMES}.")
    if not 2 <= len(names) <= IGNORED:
        raise DataError(f"there must be 2 … {IGNORED} classes, but got {len(names)}.")
    return tuple(names)
