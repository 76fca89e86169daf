"""Images in one folder per class, under one folder per split: torchvision's ImageFolder, checked first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from entropatch.data.base import DataError, DataSet, ImageFiles
from entropatch.data.file_lists import open_listed, some

TEST_SPLITS = ("val", "validation", "test")


def open_folder(
    root: Path | None, *, download: bool = False, test_split: str | None = None, split: str | None = None
) -> DataSet:
    """Any data set of the layout  root/train/<class>/<image>  and  root/val/<class>/<image>.

    Args:
        root: the folder that holds the splits.
        test_split: the split to test on; by default the one that exists of val, validation and test.
        split: a list of the images to use, `entropatch.data.file_lists`; its lines begin with the names of the folders.

    Raises:
        DataError: a split or an image is missing, a class is empty, or the splits differ in their classes.
    """
    del download  # there is nothing to download
    root = existing(root, "folder")
    train = split_folder(root, ("train",))
    if split is not None:
        names = TEST_SPLITS if test_split is None else (test_split,)
        return open_listed(split, {name: root / name for name in ("train", *names)})
    test = split_folder(root, TEST_SPLITS if test_split is None else (test_split,))
    classes, tested = class_names(train), class_names(test)
    if classes != tested:
        raise DataError(
            f"{train} and {test} must hold the same classes, but only the first has "
            f"{some(set(classes) - set(tested))} and only the second has {some(set(tested) - set(classes))}."
        )
    return DataSet(tuple(classes), list_images([train], classes), list_images([test], classes))


def existing(root: Path | None, name: str) -> Path:
    """The root folder, which must be given and exist."""
    if root is None:
        raise DataError(f"the data set {name!r} needs its folder: give root=… (--root on the command line).")
    if not root.is_dir():
        raise DataError(f"the folder of the data set {name!r} must exist, but {root} is not a folder.")
    return root


def split_folder(root: Path, names: Sequence[str]) -> Path:
    """The one folder of these names that exists under `root`."""
    found = [root / name for name in names if (root / name).is_dir()]
    if not found:
        raise DataError(
            f"{root} must hold a folder named {' or '.join(names)}: the layout is {root}/train/<class>/<image> and "
            f"{root}/val/<class>/<image>. But it has {_contents(root)}."
        )
    if len(found) > 1:
        raise DataError(f"{root} holds {some(path.name for path in found)}; say which one to test on: test_split=….")
    return found[0]


def class_names(split: Path) -> list[str]:
    """The class folders of a split, sorted."""
    names = _folders(split)
    if not names:
        raise DataError(
            f"{split} must hold one folder per class, with the images of that class in it, but has {_contents(split)}."
        )
    return names


def list_images(splits: Sequence[Path], classes: Sequence[str]) -> ImageFiles:
    """The images of these classes, gathered from one or several folders of class folders.

    Raises:
        DataError: a class has no folder, or no image.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    where = " and ".join(map(str, splits))
    missing = [name for name in classes if not any((split / name).is_dir() for split in splits)]
    if missing:
        raise DataError(f"{where} must hold a folder for each class, but {len(missing)} are missing: {some(missing)}.")
    samples: list[tuple[str, int]] = []
    for split in splits:
        here = {name: number for number, name in enumerate(classes) if (split / name).is_dir()}
        samples += make_dataset(split, here, IMG_EXTENSIONS, allow_empty=True) if here else []
    empty = set(classes) - {classes[number] for _, number in samples}
    if empty:
        raise DataError(
            f"every class folder in {where} must hold an image (.jpg, .png, .webp, …), but these are empty: "
            f"{some(empty)}. Fill them, or remove them from every split."
        )
    return ImageFiles([file for file, _ in samples], [number for _, number in samples])


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _contents(path: Path) -> str:
    """What is in a folder that should hold folders, and what to do with it."""
    folders, images = _folders(path), _count_images(path)
    if not folders:
        if not images:
            return "nothing"
        return f"{images} {'images' if images > 1 else 'image'} and no folder; sort them into one folder per class"
    found = f"the folders {some(folders)}" if len(folders) > 1 else f"the folder {folders[0]}"
    if path.name in ("train", *TEST_SPLITS):
        return f"{found}; give the folder that holds {path.name}, {path.parent}, if these are the classes"
    if any(_count_images(path / name) for name in folders):
        return f"{found}, with images; if these are the classes, move them into train, and some of the images into val"
    return found


def _count_images(path: Path) -> int:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return sum(entry.suffix.lower() in IMG_EXTENSIONS for entry in path.iterdir())
