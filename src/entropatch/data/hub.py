"""Any Hugging Face data set of images, by its name on the hub or by a local folder that `datasets` can read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from PIL import Image

from entropatch.data.base import DataError, DataSet, LabelledImages
from entropatch.data.folders import TEST_SPLITS
from entropatch.extras import require


class HubImages(LabelledImages):
    """One split; images are decoded here, so that a damaged one is reported like any other."""

    rows: Any
    column: str
    labels: list[int]
    split: str

    def __init__(self, rows: Any, image_column: str, labels: Sequence[int], name: str):
        datasets = require("datasets", "datasets")
        self.rows = rows.cast_column(image_column, datasets.Image(decode=False)).select_columns([image_column])
        self.column, self.labels, self.split = image_column, list(labels), name

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        return self.labels[index]

    def name(self, index: int) -> str:
        return f"{self.split}, row {index}"

    def image(self, index: int) -> Image.Image:
        from entropatch.data.images import ImageError, image_from_bytes, load_image

        cell = self.rows[index][self.column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise ImageError(f"{self.name(index)}: no image.")
        if cell["bytes"] is None:
            return load_image(cell["path"])
        return image_from_bytes(cell["bytes"], self.name(index))


def open_hub(
    name: str,
    root: Path | None = None,
    *,
    download: bool = False,
    config: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DataSet:
    """The data set `name` of the Hugging Face hub, from the local cache, or downloaded if allowed.

    Args:
        name: "owner/name", or a local folder in any format `datasets` reads.
        root: where the cache lies; the library's own place when None.
        config: the configuration, for data sets that have several.
        train_split, test_split: names of the splits; for testing by default the one there is of val, validation, test.
        image_column, label_column: by default the only columns of images and of class labels.

    Raises:
        ImportError: the package `datasets` is not installed.
        DataError: not found, or splits and columns are not there or not clear.
    """
    datasets = require("datasets", "datasets")
    splits = _load(datasets, name, config, root, download)
    test_split = test_split or _only([s for s in TEST_SPLITS if s in splits], f"test split of {name}", splits)
    missing = [split for split in (train_split, test_split) if split not in splits]
    if missing:
        raise DataError(f"{name} must have the split {missing[0]!r}, but has {', '.join(splits)}.")
    features = splits[train_split].features
    image_column = image_column or _column(features, lambda f: isinstance(f, datasets.Image), "image", name)
    label_column = label_column or _column(features, lambda f: isinstance(f, datasets.ClassLabel), "label", name)
    for column in (image_column, label_column):
        if column not in features:
            raise DataError(f"{name} must have the column {column!r}, but has {', '.join(features)}.")
    rows = [splits[train_split], splits[test_split]]
    values = [split[label_column][:] for split in rows]
    classes, labels = _labels(features[label_column], values, name)
    train, test = (
        HubImages(split, image_column, numbers, f"{name} {title}")
        for split, numbers, title in zip(rows, labels, (train_split, test_split), strict=True)
    )
    return DataSet(classes, train, test)


def _load(datasets: Any, name: str, config: str | None, root: Path | None, download: bool) -> Any:
    try:
        with nullcontext() if download else _offline(datasets):
            return datasets.load_dataset(name, config, cache_dir=None if root is None else str(root))
    except Exception as error:  # the library raises its own errors, the HTTP client's, and the file system's
        hint = "" if download else " It must be in the local cache; or allow the download with --download."
        raise DataError(f"the data set {name!r} could not be opened: {error}.{hint}") from error


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """The libraries' own offline switches, set inside the block. The environment variables count at import only."""
    from huggingface_hub import constants

    places = [constants, datasets.config]
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _column(features: Any, fits: Callable[[Any], bool], usual: str, name: str) -> str:
    found = [column for column, feature in features.items() if fits(feature)]
    if not found and usual in features:
        return usual
    return _only(found, f"{usual} column of {name} ({usual}_column)", features)


def _only(found: list[str], what: str, among: Any) -> str:
    if len(found) != 1:
        raise DataError(
            f"the {what} must be named: {', '.join(found) or 'none was recognised'} among {', '.join(among)}."
        )
    return found[0]


def _labels(feature: Any, splits: list[list[Any]], name: str) -> tuple[tuple[str, ...], list[list[int]]]:
    """Class names, and the class number of each row of each split."""
    values = set().union(*splits)
    if hasattr(feature, "names"):  # a ClassLabel: the values are numbers already
        classes, numbers = feature.names, {i: i for i in range(len(feature.names))}
    else:
        classes = sorted(values - {None}, key=lambda value: (str(type(value)), value))
        numbers = {value: i for i, value in enumerate(classes) if value != -1}
    unknown = values - set(numbers)
    if unknown:
        raise DataError(
            f"every label of {name} must be a class, but some are {', '.join(sorted(map(str, unknown)))}; a split with "
            "hidden labels (-1) cannot be used: name another with train_split or test_split."
        )
    return tuple(map(str, classes)), [[numbers[value] for value in split] for split in splits]
