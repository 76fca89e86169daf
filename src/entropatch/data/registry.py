"""The data sets by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from entropatch.data.base import DataSet, limited
from entropatch.data.caltech101 import open_caltech101
from entropatch.data.cub200 import open_cub200
from entropatch.data.digits import open_digits
from entropatch.data.fashion_mnist import open_fashion_mnist
from entropatch.data.folders import open_folder
from entropatch.data.hub import open_hub
from entropatch.data.imagenet100 import open_imagenet100
from entropatch.data.photos import open_fashion_mnist_photos
from entropatch.data.torchvision_sets import (
    open_aircraft,
    open_cars,
    open_dtd,
    open_flowers102,
    open_food101,
    open_imagenette,
    open_pets,
)

DATASETS: dict[str, Callable[..., DataSet]] = {
    "imagenet100": open_imagenet100,
    "imagenette": open_imagenette,
    "caltech101": open_caltech101,
    "aircraft": open_aircraft,
    "cars": open_cars,
    "cub200": open_cub200,
    "dtd": open_dtd,
    "flowers102": open_flowers102,
    "food101": open_food101,
    "pets": open_pets,
    "folder": open_folder,
    "digits": open_digits,
    "fashion-mnist": open_fashion_mnist,
    "fashion-mnist-photos": open_fashion_mnist_photos,
}
HUB = "hf:"


def data_text() -> str:
    """What `open_data` may be asked for, for messages and help texts: "imagenet100, …, or hf:NAME"."""
    return f"{', '.join(DATASETS)} or {HUB}NAME"


def open_data(
    name: str,
    root: str | Path | None = None,
    *,
    download: bool = False,
    train_limit: int | None = None,
    test_limit: int | None = None,
    **options: Any,
) -> DataSet:
    """The data set of that name, both splits.

    Args:
        name: one of `DATASETS`, or "hf:NAME" for a Hugging Face data set.
        root: its folder, where it needs one.
        download: whether it may be fetched, for those that can be. Nothing is ever downloaded otherwise.
        train_limit, test_limit: use only so many images, drawn once and for all, for quick trials.
        **options: what that data set's own function takes, such as `level` of "aircraft".

    Returns:
        The data set; its `description` says how it was opened.

    Raises:
        DataError: unknown name; not there; not laid out as it should be. The message names the fix.
        ValueError, TypeError: a limit or option out of range, or unknown.
    """
    opener = partial(open_hub, name.removeprefix(HUB)) if name.startswith(HUB) else DATASETS.get(name)
    if opener is None:
        raise ValueError(f"a data set is one of {data_text()}, but got {name!r}.")
    known = [p.name for p in inspect.signature(opener).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known.remove("download")
    unknown = set(options) - set(known)
    if unknown:
        raise TypeError(
            f"the data set {name!r} takes {'the options ' + ', '.join(known) if known else 'no options'}, but got "
            f"{', '.join(sorted(unknown))}."
        )
    data = opener(None if root is None else Path(root).expanduser(), download=download, **options)
    train = limited(data.train, train_limit, "train_limit")
    test = limited(data.test, test_limit, "test_limit")
    description = {
        "name": name,
        "root": None if root is None else str(root),
        "options": options,
        "classes": len(data.classes),
        "train": len(train),
        "test": len(test),
    }
    return replace(data, train=train, test=test, description=description | dict(data.description))
