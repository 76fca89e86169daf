"""CUB-200-2011 (Wah et al. 2011): 200 species of birds, from the official archive as it unpacks."""

from __future__ import annotations

import tarfile
from pathlib import Path

from entropatch.data.base import DataError, DataSet, ImageFiles

FOLDER = "CUB_200_2011"
PAGE = "https://data.caltech.edu/records/65de6-vp158"
ARCHIVE, MD5 = f"{PAGE}/files/CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78"


def open_cub200(root: Path | None, *, download: bool = False) -> DataSet:
    """CUB-200-2011: official train (5,994) and test (5,794) images, by images.txt and train_test_split.txt.

    `root` is the folder that holds, or with `download` shall hold, CUB_200_2011/.

    Raises:
        DataError: not found or not whole, and `download` is not set.
    """
    if root is None:
        raise DataError("the data set 'cub200' needs its folder: give root=… (--root on the command line).")
    folder = root / FOLDER
    if download and not folder.is_dir():
        _fetch(root)
    classes = _column(folder, "classes.txt")
    images, labels, split = (
        _column(folder, name) for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    numbers = {key: number for number, key in enumerate(classes)}
    for name, values, allowed in (
        ("image_class_labels.txt", labels, set(numbers)),
        ("train_test_split.txt", split, {"0", "1"}),
    ):
        if values.keys() != images.keys() or not allowed.issuperset(values.values()):
            raise DataError(
                f"{folder / name} must give one of {len(allowed)} values for each image of images.txt; the copy is not "
                f"whole: get the official archive from {PAGE}."
            )

    def chosen(flag: str) -> ImageFiles:
        keys = [key for key in images if split[key] == flag]
        return ImageFiles([folder / "images" / images[key] for key in keys], [numbers[labels[key]] for key in keys])

    return DataSet(tuple(classes.values()), chosen("1"), chosen("0"))


def _column(folder: Path, name: str) -> dict[str, str]:
    """What a text file of lines  <number> <value>  gives for each number."""
    try:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"cub200 was not found whole: {folder / name} cannot be read ({error.strerror}); give the folder that "
            f"holds {FOLDER}/, or allow the download with download=True (--download). Its official archive: {PAGE}."
        ) from error
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    if not pairs or any(len(pair) != 2 for pair in pairs) or len({pair[0] for pair in pairs}) != len(pairs):
        raise DataError(f"{folder / name} must hold lines of a number, each once, and a value; the copy is damaged.")
    return {key: value.strip() for key, value in pairs}


def _fetch(root: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(ARCHIVE, str(root), md5=MD5)
    except (RuntimeError, OSError, tarfile.TarError) as error:
        raise DataError(
            f"cub200 could not be fetched ({error}); get the official archive from {PAGE} and unpack it so that {root} "
            f"holds {FOLDER}/images.txt."
        ) from error
