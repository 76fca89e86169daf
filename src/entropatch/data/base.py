"""What every data set is here: two lists of labelled images, read on demand."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class DataError(ValueError):
    """A data set is not there, or not laid out as its format says."""


class LabelledImages(ABC):
    """A list of images with labels. Nothing is read before it is asked for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The image in RGB. Raises `entropatch.data.images.ImageError` if its file is damaged."""

    @abstractmethod
    def label(self, index: int) -> int:
        """The class number, 0-based."""

    def name(self, index: int) -> str:
        """The image's file, or what else tells the user which one it is."""
        return f"image {index}"

    def mask(self, index: int) -> np.ndarray:
        """Which pixels show the object: (height, width), bool. Raises DataError where the data set does not know."""
        raise DataError(f"{self.name(index)}: this data set has no masks; fashion-mnist-photos has.")

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in 0 … {len(self) - 1}, but got {index}.")
        return self.image(index), self.label(index)


class ImageFiles(LabelledImages):
    """Images in files."""

    files: list[str | Path]
    labels: list[int]

    def __init__(self, files: Sequence[str | Path], labels: Sequence[int]):
        self.files, self.labels = list(files), list(labels)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        from entropatch.data.images import ImageError, load_image

        try:
            return load_image(self.files[index])
        except ImageError as error:
            if Path(self.files[index]).exists():
                raise
            # A file that is listed and not there is no damaged image: a drive is gone, or the copy is incomplete.
            raise DataError(f"the data set lists {self.files[index]}, which does not exist.") from error

    def label(self, index: int) -> int:
        return self.labels[index]

    def name(self, index: int) -> str:
        return str(self.files[index])


class ImageArray(LabelledImages):
    """Grey images in one array (images, height, width) of bytes."""

    images: NDArray[Any]
    labels: list[int]

    def __init__(self, images: np.ndarray, labels: Sequence[int] | np.ndarray):
        self.images, self.labels = images, [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index]).convert("RGB")

    def label(self, index: int) -> int:
        return self.labels[index]


class Chosen(LabelledImages):
    """Some images of a list: number i is number `places[i]` of the whole."""

    whole: LabelledImages
    places: list[int]

    def __init__(self, whole: LabelledImages, places: Sequence[int]):
        self.whole, self.places = whole, list(places)

    def __len__(self) -> int:
        return len(self.places)

    def image(self, index: int) -> Image.Image:
        return self.whole.image(self.places[index])

    def label(self, index: int) -> int:
        return self.whole.label(self.places[index])

    def name(self, index: int) -> str:
        return self.whole.name(self.places[index])

    def mask(self, index: int) -> np.ndarray:
        return self.whole.mask(self.places[index])


@dataclass(frozen=True)
class DataSet:
    """A data set opened.

    Attributes:
        classes: the class names; a label is a place in it.
        train, test: the two splits.
        description: how it was opened, as JSON holds it; two runs on the same data have the same description.
    """

    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    description: Mapping[str, Any] = field(default_factory=dict)


def listing_hash(images: LabelledImages) -> str:
    """A hash of the list: the name of each image with the folder it lies in, its label, and their order.

    Where the data set lies does not matter, and no image is read.
    """
    found = hashlib.sha256()
    for index in range(len(images)):
        name = "/".join(PurePath(images.name(index)).parts[-2:])
        found.update(f"{name}\t{images.label(index)}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def limited(images: LabelledImages, limit: int | None, what: str) -> LabelledImages:
    """`limit` images drawn once and for all, the same for every run and seed; all of them for None.

    Raises:
        ValueError: the limit is not positive, or there are fewer images.
    """
    if limit is None:
        return images
    if not 1 <= limit <= len(images):
        raise ValueError(f"{what} must lie in 1 … {len(images)}, the images there are, but got {limit}.")
    return Chosen(images, np.random.default_rng(0).permutation(len(images))[:limit].tolist())
