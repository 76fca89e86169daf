"""scikit-learn's handwritten digits: 1,797 grey images of 8×8 pixels that come with the package, for quick trials."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from entropatch.data.base import DataError, DataSet, ImageArray
from entropatch.extras import require


def open_digits(root: Path | None = None, *, download: bool = False) -> DataSet:
    """The digits, every fifth image for testing (360) and the others for training (1,437).

    Raises:
        ImportError: scikit-learn is not installed.
    """
    del download
    if root is not None:
        raise DataError(f"the data set 'digits' comes with scikit-learn and takes no folder, but got {root}.")
    digits = require("sklearn.datasets", "train").load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target
    test = np.arange(len(images)) % 5 == 0
    return DataSet(
        tuple(map(str, digits.target_names)),
        ImageArray(images[~test], labels[~test]),
        ImageArray(images[test], labels[test]),
    )
