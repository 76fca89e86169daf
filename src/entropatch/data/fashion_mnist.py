"""Fashion-MNIST (Xiao et al. 2017) from its IDX files, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from entropatch.data.base import DataError, DataSet, ImageArray

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FILES = {"train": "train", "test": "t10k"}


def open_fashion_mnist(root: Path | None = None, *, download: bool = False) -> DataSet:
    """60,000 training and 10,000 test garments, 28×28 grey, in 10 classes.

    `root` holds the four IDX files; by default the folder of Debian's package dataset-fashion-mnist.

    Raises:
        DataError: a file is missing or is not what its header says.
    """
    del download
    train, test = (ImageArray(*load_split(root, split)) for split in FILES)
    return DataSet(CLASSES, train, test)


def load_split(root: Path | None, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) and labels (n,) of one split, both bytes."""
    folder = DEBIAN if root is None else root
    images = read_idx(_find(folder, f"{FILES[split]}-images-idx3-ubyte"))
    labels = read_idx(_find(folder, f"{FILES[split]}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
        raise DataError(
            f"{folder} must hold as many {split} images (n, height, width) as labels (n,), but the files hold "
            f"{images.shape} and {labels.shape}."
        )
    if labels.max() >= len(CLASSES):
        raise DataError(f"the {split} labels in {folder} must lie in 0 … 9, but one is {labels.max()}.")
    return images, labels


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes: two zeros, the type 0x08, the number of dimensions, the sizes, the values.

    Sizes are 32-bit big-endian (http://yann.lecun.com/exdb/mnist, "the IDX file format").

    Raises:
        DataError: the header is another one, or the file is shorter or longer than it says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} must be a whole gzip file, but: {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 3:
        raise DataError(
            f"{path} must be an IDX file of unsigned bytes (00 00 08 …), but begins with {data[:4].hex(' ')}."
        )
    dimensions = data[3]
    body = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(data[4:body], ">u4")) if len(data) >= body else ()
    if len(shape) != dimensions or len(data) - body != math.prod(shape):
        raise DataError(f"{path} must hold {shape} bytes as its header says, but holds {max(len(data) - body, 0)}.")
    return np.frombuffer(data, np.uint8, offset=body).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(
        f"{folder} must hold {name} or {name}.gz; install Debian's package dataset-fashion-mnist, or give the folder "
        "of the four files with root=… (--root)."
    )
