"""Data sets that torchvision reads, in their official splits: the archives as published, by torchvision's classes.

`ARCHIVES` says where each is, and what it unpacks to. torchvision fetches it from there, with download=True only; no
other mirror is used. Two addresses are dead, by torchvision's own tracker: that of Stanford Cars, for good
(pytorch/vision#7545), and the one older versions have for Caltech-101 (#9192); torchvision 0.29 has the one below.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from entropatch.data.base import DataError, DataSet, ImageFiles
from entropatch.data.file_lists import open_listed
from entropatch.extras import require

VGG = "https://www.robots.ox.ac.uk/~vgg/data"
# By name: what must lie under the root, and the page of the official archive.
ARCHIVES = {
    "aircraft": ("fgvc-aircraft-2013b/data", f"{VGG}/fgvc-aircraft"),
    "caltech101": (
        "caltech101/101_ObjectCategories/<class>/image_<number>.jpg",
        "https://data.caltech.edu/records/mzrjq-6wc02",
    ),
    "dtd": ("dtd/dtd/images and dtd/dtd/labels", f"{VGG}/dtd"),
    "flowers102": ("flowers-102/jpg, imagelabels.mat and setid.mat", f"{VGG}/flowers/102"),
    "food101": ("food-101/images and food-101/meta", "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101"),
    "imagenette": ("imagenette2, imagenette2-320 or imagenette2-160", "https://github.com/fastai/imagenette"),
    "pets": ("oxford-iiit-pet/images and oxford-iiit-pet/annotations", f"{VGG}/pets"),
}
SIZES = {"full": "imagenette2", "320px": "imagenette2-320", "160px": "imagenette2-160"}


def open_aircraft(root: Path | None, *, download: bool = False, level: str = "variant") -> DataSet:
    """FGVC-Aircraft 2013b (Maji et al. 2013): official trainval (6,667) and test (3,333) images.

    Args:
        root: the folder that holds, or with `download` shall hold, fgvc-aircraft-2013b/.
        level: "variant" (100 classes), "family" (70) or "manufacturer" (41).

    Raises:
        DataError: not found, and `download` is not set.
    """
    from torchvision.datasets import FGVCAircraft

    train, test = (
        opened("aircraft", FGVCAircraft, root, download, split=split, annotation_level=level)
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
    from torchvision.datasets import Flowers102

    train, val, test = (
        opened("flowers102", Flowers102, root, download, split=split) for split in ("train", "val", "test")
    )
    return DataSet(tuple(Flowers102.classes), _joined(_files(train), _files(val)), _files(test))


def open_imagenette(
    root: Path | None, *, download: bool = False, size: str = "full", split: str | None = None
) -> DataSet:
    """Imagenette, version 2: ten classes of ImageNet, official train (9,469) and val (3,925) images.

    Classes are WordNet ids, so a model of ImageNet's 1,000 classes can be tested on it.

    Args:
        root: the folder that holds, or with `download` shall hold, imagenette2/, imagenette2-320/ or imagenette2-160/.
        size: "full"; or "320px" or "160px", the copies whose shorter side was scaled to that.
        split: a list of the images to use, lines of train/<id>/<file> and val/<id>/<file>; see
            `entropatch.data.file_lists`.

    Raises:
        DataError: not found or not whole, and `download` is not set; an unknown size; a list that does not fit.
    """
    from torchvision.datasets import Imagenette

    if size not in SIZES:
        raise DataError(f"size must be one of {', '.join(SIZES)}, but got {size!r}.")
    train, test = (opened("imagenette", Imagenette, root, download, split=part, size=size) for part in ("train", "val"))
    if split is not None:
        assert root is not None
        return open_listed(split, {part: root / SIZES[size] / part for part in ("train", "val")})
    _same_classes("imagenette", train.wnids, test.wnids)
    return DataSet(tuple(train.wnids), _samples(train), _samples(test))


def open_pets(root: Path | None, *, download: bool = False) -> DataSet:
    """Oxford-IIIT Pet (Parkhi et al. 2012): 37 breeds, official trainval (3,680) and test (3,669) images.

    `root` is the folder that holds, or with `download` shall hold, oxford-iiit-pet/ with images/ and annotations/.

    Raises:
        DataError: not found or not whole, and `download` is not set.
    """
    from torchvision.datasets import OxfordIIITPet

    train, test = (opened("pets", OxfordIIITPet, root, download, split=split) for split in ("trainval", "test"))
    _same_classes("pets", train.classes, test.classes)
    first, second = (ImageFiles(one._images, one._labels) for one in (train, test))
    return DataSet(tuple(train.classes), first, second)


def open_food101(root: Path | None, *, download: bool = False) -> DataSet:
    """Food-101 (Bossard et al. 2014): 101 dishes, official train (75,750, some labels wrong) and test (25,250) images.

    `root` is the folder that holds, or with `download` shall hold, food-101/ with images/ and meta/.

    Raises:
        DataError: not found or not whole, and `download` is not set.
    """
    from torchvision.datasets import Food101

    train, test = (opened("food101", Food101, root, download, split=split) for split in ("train", "test"))
    _same_classes("food101", train.classes, test.classes)
    return DataSet(tuple(train.classes), _files(train), _files(test))


def open_cars(root: Path | None, *, download: bool = False) -> DataSet:
    """Stanford Cars (Krause et al. 2013): 196 models, official train (8,144) and test (8,041) images.

    It can be downloaded no more, by torchvision neither; `root` is the folder that holds stanford_cars/, with
    cars_train/, cars_test/, cars_test_annos_withlabels.mat, devkit/cars_meta.mat and devkit/cars_train_annos.mat.

    Raises:
        DataError: not found or not whole, whether `download` is set or not.
    """
    require("scipy.io", "train")  # torchvision reads the official labels with it
    from torchvision.datasets import StanfordCars

    del download
    try:
        train, test = (StanfordCars(_root("cars", root), split=split) for split in ("train", "test"))
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"cars was not found whole under {root} ({error}). It cannot be downloaded: its page, "
            "https://ai.stanford.edu/~jkrause/cars/car_dataset.html, is gone. Where copies are is gathered in "
            f"https://github.com/pytorch/vision/issues/7545; what is needed is {root}/stanford_cars with cars_train/, "
            "cars_test/, cars_test_annos_withlabels.mat, devkit/cars_meta.mat and devkit/cars_train_annos.mat."
        ) from error
    return DataSet(tuple(map(str, train.classes)), _samples(train), _samples(test))


def open_dtd(root: Path | None, *, download: bool = False, partition: int = 1) -> DataSet:
    """Describable Textures (Cimpoi et al. 2014): 47 classes, official train and val together (3,760), test (1,880).

    Args:
        root: the folder that holds, or with `download` shall hold, dtd/dtd/ with images/ and labels/.
        partition: which of the ten official splits, 1 … 10; the first is the usual one.

    Raises:
        DataError: not found or not whole, and `download` is not set; a partition out of range.
    """
    from torchvision.datasets import DTD

    if isinstance(partition, bool) or not isinstance(partition, int) or not 1 <= partition <= 10:
        raise DataError(f"partition must be an integer in 1 … 10, but got {partition!r}.")
    train, val, test = (
        opened("dtd", DTD, root, download, split=split, partition=partition) for split in ("train", "val", "test")
    )
    for other in (val, test):
        _same_classes("dtd", train.classes, other.classes)
    return DataSet(tuple(train.classes), _joined(_files(train), _files(val)), _files(test))


def opened(name: str, kind: Callable[..., Any], root: Path | None, download: bool, **options: Any) -> Any:
    """What torchvision's class makes of the folder.

    Args:
        name: of the data set, as in `ARCHIVES`.
        kind: the class.

    Raises:
        DataError: no root; not whole, or the download failed.
    """
    root, (layout, page) = _root(name, root), ARCHIVES[name]
    try:
        return kind(root, download=download, **options)
    except (RuntimeError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        if download:
            raise DataError(
                f"{name} could not be fetched ({error}); get the official archive from {page} and unpack it so that "
                f"{root} holds {layout}."
            ) from error
        raise DataError(
            f"{name} was not found whole under {root} ({error}); give the folder that holds {layout}, or allow the "
            f"download with download=True (--download). Its official archive: {page}."
        ) from error


def _root(name: str, root: Path | None) -> Path:
    if root is None:
        raise DataError(f"the data set {name!r} needs its folder: give root=… (--root on the command line).")
    return root


def _same_classes(name: str, first: Sequence[str], second: Sequence[str]) -> None:
    if list(first) != list(second):
        raise DataError(
            f"{name} must have the same classes in every split, but has {len(first)} in one and {len(second)} in "
            "another, or others; the copy is not whole."
        )


def _files(dataset: Any) -> ImageFiles:
    # torchvision offers no public list of the files; without it a damaged image could not be named.
    return ImageFiles(dataset._image_files, dataset._labels)


def _samples(dataset: Any) -> ImageFiles:
    return ImageFiles([file for file, _ in dataset._samples], [int(label) for _, label in dataset._samples])


def _joined(first: ImageFiles, second: ImageFiles) -> ImageFiles:
    return ImageFiles(first.files + second.files, first.labels + second.labels)
