"""Images with their masks, from files, alpha channels or a data set; what cannot be used is told of and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Pair = tuple[Image.Image, np.ndarray]
    Pairs = Iterator[Pair]


def masked_images(
    images: list[Path] | None,
    masks: Path | None,
    level: int,
    alpha: bool,
    data: str | None,
    root: Path | None,
    options: dict[str, Any],
    limit: int,
    skip: Callable[[Exception], None],
) -> tuple[int, Pairs, str]:
    """How many images there are, the images with their masks one after the other, and where the masks come from.

    One that cannot be read, or whose mask does not fit, goes to `skip`.
    """
    from entropatch.data.images import image_files
    from entropatch.data.masks import masks_by_stem

    sources = [name for name, given in (("--masks", masks), ("--alpha", alpha), ("--data", data)) if given]
    if len(sources) != 1:
        given = f"got {' and '.join(sources)}" if sources else "got none"
        raise ValueError(f"masks come from one of --masks FOLDER, --alpha or --data NAME, but {given}.")
    if data is not None:
        if images:
            raise ValueError("--data brings its own images; leave out the files, or --data.")
        return _from_data(data, root, options, limit, skip)
    if not images:
        raise ValueError("name the image files whose masks are given.")
    files = image_files(images)
    if masks is None:
        reads = [partial(_with_alpha, file) for file in files]
        return len(files), _readable(reads, skip), "alpha channels of the images"
    reads = [
        partial(_with_mask, file, mask, level) for file, mask in zip(files, masks_by_stem(files, masks), strict=True)
    ]
    return len(files), _readable(reads, skip), f"{masks}, above {level} is foreground"


def _from_data(
    name: str, root: Path | None, options: dict[str, Any], limit: int, skip: Callable[[Exception], None]
) -> tuple[int, Pairs, str]:
    from entropatch.data import open_data

    test = open_data(name, root, test_limit=limit, **options).test
    test.mask(0)  # says so if there are none
    reads = [lambda i=i: (test.image(i), test.mask(i)) for i in range(len(test))]
    return len(test), _readable(reads, skip), f"{name}, {len(test)} test images"


def _readable(reads: Sequence[Callable[[], Pair]], skip: Callable[[Exception], None]) -> Pairs:
    return (pair for read in reads if (pair := _pair_or_none(read, skip)) is not None)


def _pair_or_none(read: Callable[[], Pair], skip: Callable[[Exception], None]) -> Pair | None:
    from entropatch.data.images import ImageError
    from entropatch.data.masks import MaskError

    try:
        return read()
    except (ImageError, MaskError, OSError) as error:
        skip(error)
        return None


def _with_mask(file: Path, path: Path, level: int) -> Pair:
    from entropatch.data.images import load_image
    from entropatch.data.masks import check_size, load_mask

    image, mask = load_image(file), load_mask(path, level)
    check_size(mask, image, str(path))
    return image, mask


def _with_alpha(file: Path) -> Pair:
    from entropatch.data.images import load_image
    from entropatch.data.masks import alpha_mask

    return load_image(file), alpha_mask(file)
