"""ImageNet-100: the 100 classes of ImageNet-1k listed in `imagenet100.txt`.

The ids are those of Contrastive Multiview Coding (Tian et al. 2020), the usual "ImageNet-100".
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from entropatch.data.base import DataError, DataSet
from entropatch.data.folders import TEST_SPLITS, class_names, existing, list_images, split_folder


def class_ids() -> tuple[str, ...]:
    """The 100 WordNet ids, sorted, so that labels are those of an ImageFolder of just these classes."""
    text = (resources.files("entropatch.data") / "imagenet100.txt").read_text(encoding="utf-8")
    return tuple(sorted(text.split()))


def open_imagenet100(root: Path | None, *, download: bool = False, test_split: str | None = None) -> DataSet:
    """ImageNet-100, some 126,700 training and 5,000 test images.

    `root` is one of:

    - an ImageNet-1k folder with train/<id>/ and val/<id>/ (the 900 other classes are passed over), or its parent
      in the layout of the ILSVRC archive, ILSVRC/Data/CLS-LOC;
    - an already split folder with just these classes;
    - the layout of the public archives of ImageNet-100: train.X1 … train.X4 and val.X.

    Raises:
        DataError: a class is missing or empty, or val/ is flat, as the original ImageNet archive unpacks it.
    """
    del download  # ImageNet may not be redistributed
    root = existing(root, "imagenet100")
    archive = root / "ILSVRC" / "Data" / "CLS-LOC"
    root = archive if archive.is_dir() else root
    parts = sorted(path for path in root.glob("train.X*") if path.is_dir())
    train = parts or [split_folder(root, ("train",))]
    test = root / "val.X"
    if test_split is not None or not test.is_dir():
        test = split_folder(root, TEST_SPLITS if test_split is None else (test_split,))
    if not any(path.is_dir() for path in test.iterdir()):
        raise DataError(
            f"{test} must hold one folder per class id, but is flat, as the original archive unpacks it; sort it with "
            "torchvision.datasets.ImageNet(root, split='val') and give the folder that makes."
        )
    classes = class_ids()
    class_names(test)
    return DataSet(classes, list_images(train, classes), list_images([test], classes))
