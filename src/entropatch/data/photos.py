"""Fashion-MNIST's garments laid on photographs, with the exact mask of each: there is something to prune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from entropatch.data.base import DataError, DataSet, LabelledImages
from entropatch.data.fashion_mnist import CLASSES, FILES, load_split

# Some garments are surrounded by specks of values 1 … 8, which are no cloth.
SPECKS = 8
# Test backgrounds are other photographs than those trained on.
BUNDLED: dict[str, tuple[str, ...]] = {"train": ("astronaut", "cat", "rocket", "flower"), "test": ("coffee", "china")}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class GarmentsOnPhotographs(LabelledImages):
    """Garment i at a place, size and background that depend on (split, i) alone.

    A square cut of a photograph, 0.4 to 1 times its short side, is scaled to `size`; the garment, its 28 pixels scaled
    to between ½ and ¾ of `size`, covers it where `mask` is true and nowhere else. It stays grey.
    """

    garments: NDArray[Any]
    labels: NDArray[Any]
    photographs: list[Image.Image]
    size: int
    stream: int

    def __init__(
        self, garments: np.ndarray, labels: np.ndarray, photographs: Sequence[Image.Image], size: int, stream: int
    ):
        self.garments, self.labels, self.photographs = garments, labels, list(photographs)
        self.size, self.stream = size, stream

    def __len__(self) -> int:
        return len(self.garments)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def image(self, index: int) -> Image.Image:
        background, garment, mask = self._parts(index)
        return Image.fromarray(np.where(mask[..., None], garment[..., None], background))

    def mask(self, index: int) -> np.ndarray:
        """Which pixels of image `index` show the garment: (size, size), bool."""
        return self._parts(index)[2]

    def _parts(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Background (size, size, 3), garment (size, size) and mask of one image."""
        draw = np.random.default_rng((self.stream, index))
        photograph = self.photographs[draw.integers(len(self.photographs))]
        side = int(min(photograph.size) * draw.uniform(0.4, 1))
        left, top = (int(draw.integers(length - side + 1)) for length in photograph.size)
        box = (left, top, left + side, top + side)
        background = photograph.resize((self.size, self.size), Image.Resampling.BICUBIC, box)
        scaled, mask = _scaled(self.garments[index], int(draw.integers(self.size // 2, self.size * 3 // 4 + 1)))
        row, column = (int(draw.integers(self.size - len(mask) + 1)) for _ in range(2))
        place = slice(row, row + len(mask)), slice(column, column + len(mask))
        garment, where = np.zeros((self.size,) * 2, np.uint8), np.zeros((self.size,) * 2, bool)
        garment[place], where[place] = scaled, mask
        return np.asarray(background), garment, where


def open_fashion_mnist_photos(
    root: Path | None = None, *, download: bool = False, size: int = 112, backgrounds: str | None = None
) -> DataSet:
    """Fashion-MNIST on photographs: `GarmentsOnPhotographs`, 60,000 to train and 10,000 to test.

    Args:
        root: the folder of the IDX files, as for "fashion-mnist".
        size: side of the square pictures in pixels, at least 28.
        backgrounds: a folder of photographs, of which every third, by name, serves for testing; by default six that
            scikit-image and scikit-learn carry.

    Raises:
        DataError: a file is missing, or `backgrounds` holds fewer than two photographs of at least 64×64 pixels.
    """
    del download
    if isinstance(size, bool) or not isinstance(size, int) or size < 28:
        raise DataError(f"size must be an integer of at least 28, the size of a garment, but got {size!r}.")
    photographs = _bundled() if backgrounds is None else _from_folder(Path(backgrounds))
    train, test = (
        GarmentsOnPhotographs(*load_split(root, split), photographs[split], size, stream)
        for stream, split in enumerate(FILES)
    )
    return DataSet(CLASSES, train, test)


def _bundled() -> dict[str, list[Image.Image]]:
    from entropatch.data.images import sample_photographs

    photographs = sample_photographs()
    return {split: [photographs[name] for name in names] for split, names in BUNDLED.items()}


def _from_folder(folder: Path) -> dict[str, list[Image.Image]]:
    from entropatch.data.images import load_image

    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    photographs = [load_image(path) for path in files]
    small = [str(path) for path, image in zip(files, photographs, strict=True) if min(image.size) < 64]
    if len(photographs) < 2 or small:
        raise DataError(
            f"backgrounds must be a folder of two or more photographs of at least 64×64 pixels, but {folder} holds "
            f"{len(photographs)}" + (f", of which too small: {', '.join(small)}." if small else ".")
        )
    return {
        "train": [image for i, image in enumerate(photographs) if i % 3 != 1],
        "test": [image for i, image in enumerate(photographs) if i % 3 == 1],
    }


def _scaled(garment: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A garment of 28×28 pixels and its mask, scaled to (side, side)."""
    cloth = (garment > SPECKS).astype(np.float32)
    share = _resized(cloth, side)
    mask = share >= 0.5
    # Divided by the cloth's share, so that no rim of the black around the garment is mixed into it.
    grey = _resized(garment * cloth, side) / np.maximum(share, 0.5)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8), mask


def _resized(values: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR))
