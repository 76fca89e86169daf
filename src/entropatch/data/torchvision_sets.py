"""FGVC-Aircraft and Oxford Flowers-102 by torchvision's loaders, in their official splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchvision.datasets import FGVCAircraft, Flowers102

from entropatch.data.base import DataError, DataSet, ImageFiles
from entropatch.extras import require


def open_aircraft(root: Path | None, *, download: bool = False, level: str = "variant") -> DataSet:
    """FGVC-Aircraft 2013b (Maji et al. 2013): official trainval (6,667) and test (3,333) images.

    Args:
        root: the folder that holds, or with `download` shall hold, fgvc-aircraft-2013b/.
        level: "variant" (100 classes), "family" (70) or "manufacturer" (41).

    Raises:
        DataError: not found, and `download` is not set.
    """
    train, test = (
        _open("aircraft", FGVCAircraft, root, download, split=split, annotation_level=level)
        for split in ("trainval", "test")
    )
    return DataSet(tuple(train.classes), _files(train), _files(test))


def open_flowers102(root: Path | None, *, download: bool = False) -> DataSet:
    """Oxford Flowers-102 (Nilsback & Zisserman 2008): official train and val together (2,040) and test (6,149) images.

    `root` is the folder that holds, or with `download` shall hold, flowers-102/.

    Raises:
        DataError: not found or damaged, and `download` is not set.
    """
    require("scipy.io", "train")  # torchvision reads the official labels with it
    train, val, test = (
        _open("flowers102", Flowers102, root, download, split=split) for split in ("train", "val", "test")
    )
    first, second = _files(train), _files(val)
    both = ImageFiles(first.files + second.files, first.labels + second.labels)
    return DataSet(tuple(Flowers102.classes), both, _files(test))


def _open(name: str, kind: Callable[..., Any], root: Path | None, download: bool, **options: str) -> Any:
    if root is None:
        raise DataError(f"the data set {name!r} needs its folder: give root=… (--root on the command line).")
    try:
        return kind(root, download=download, **options)
    except RuntimeError as error:
        raise DataError(
            f"{name} was not found whole under {root} ({error}); give the folder that holds it, or allow the download "
            "with download=True (--download)."
        ) from error


def _files(dataset: Any) -> ImageFiles:
    # torchvision offers no public list of the files; without it a damaged image could not be named.
    return ImageFiles(dataset._image_files, dataset._labels)
