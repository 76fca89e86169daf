"""Caltech-101 (Fei-Fei et al. 2004): 8,677 photographs of 101 kinds of objects, without the background class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from entropatch.data.base import DataError, DataSet, ImageFiles
from entropatch.data.file_lists import open_listed, some
from entropatch.data.torchvision_sets import ARCHIVES, opened

TRAIN_PER_CLASS, MOST_TESTED = 30, 50


def open_caltech101(root: Path | None, *, download: bool = False, split: str | None = None) -> DataSet:
    """Caltech-101 without its background class. There is no official split.

    By default it is the field's convention: of each class 30 images for training and of the others at most 50 for
    testing (3,030 and 2,945 of the official archive), drawn once and for all. Published figures are often the mean over
    classes, of several such draws.

    Args:
        root: the folder that holds, or with `download` shall hold, caltech101/101_ObjectCategories/.
        split: a list of the images to use instead, lines of train/<class>/<file> and test/<class>/<file>; see
            `entropatch.data.file_lists`.

    Raises:
        DataError: not found, and `download` is not set; a class with too few images; a list that does not fit.
    """
    folder = _folder(root, download)
    if split is not None:
        return open_listed(split, {"train": folder, "test": folder})
    files = {path.name: _images(path) for path in sorted(folder.iterdir()) if _is_class(path)}
    if few := [name for name, images in files.items() if len(images) <= TRAIN_PER_CLASS]:
        raise DataError(
            f"every class in {folder} must hold more than {TRAIN_PER_CLASS} images to train and test on, but fewer are "
            f"in {some(few)}; the archive unpacked whole has 31 to 800. A list of files is not bound to that: split=…."
        )
    chosen = [_drawn(images, number) for number, images in enumerate(files.values())]
    train, test = (
        ImageFiles(
            [file for parts in chosen for file in parts[which]],
            [number for number, parts in enumerate(chosen) for _ in parts[which]],
        )
        for which in (0, 1)
    )
    return DataSet(tuple(files), train, test)


def _folder(root: Path | None, download: bool) -> Path:
    """The folder of class folders."""
    from torchvision.datasets import Caltech101

    folder = None if root is None else root / "caltech101" / "101_ObjectCategories"
    # torchvision's class makes the folder it does not find, and counts the images instead of listing them.
    if download or folder is None:
        opened("caltech101", Caltech101, root, download)
    if folder is None or not folder.is_dir() or not any(map(_is_class, folder.iterdir())):
        layout, page = ARCHIVES["caltech101"]
        raise DataError(
            f"caltech101 was not found under {root}; give the folder that holds {layout}, or allow the download with "
            f"download=True (--download). Its official archive: {page}."
        )
    return folder


def _is_class(path: Path) -> bool:
    return path.is_dir() and path.name != "BACKGROUND_Google" and not path.name.startswith(".")


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".jpg" and not path.name.startswith("."))


def _drawn(images: list[Path], number: int) -> tuple[list[Path], list[Path]]:
    """What is trained and what is tested on of class `number`, each in the order of the files."""
    order = np.random.default_rng((0, number)).permutation(len(images)).tolist()
    train, test = order[:TRAIN_PER_CLASS], order[TRAIN_PER_CLASS : TRAIN_PER_CLASS + MOST_TESTED]
    return [images[i] for i in sorted(train)], [images[i] for i in sorted(test)]
