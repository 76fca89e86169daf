"""Masks that say which pixels of an image are foreground, from files, and per patch as a model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import nn

from entropatch.data.images import cropped, image_files, load_image, printable

# Grey levels above this are foreground.
LEVEL = 127


class MaskError(ValueError):
    """A mask that is missing or does not fit its image; the message is one line and names the file."""


def load_mask(path: str | Path, level: int = LEVEL) -> np.ndarray:
    """The foreground in a mask file: (height, width), bool.

    A black-and-white mask is taken as it is; in a palette image every index but 0 is foreground; anything else is made
    grey, 8 bits, and what is above `level` is foreground.

    Raises:
        ImageError: not an image that can be read.
        MaskError: a grey mask that is not black all over but has nothing above `level`, as one of class numbers; or
            transparency, of which it is not clear whether it is meant.
    """
    load_image(path)  # with its checks of the file
    with Image.open(path) as image:
        image.load()
        if image.has_transparency_data:
            raise MaskError(
                f"{printable(path)}: a mask must be grey, black-and-white or of a palette, but this one is transparent "
                "in places; take the alpha channels as masks (--alpha), or save it without."
            )
        if image.mode in ("1", "P"):
            return np.asarray(ImageOps.exif_transpose(image)) != 0
    grey = np.asarray(load_image(path).convert("L"))
    if 0 < grey.max() <= level:
        raise MaskError(
            f"{printable(path)}: nothing in this mask is above {level}, its highest value is {grey.max()}; if it holds "
            "class numbers, of which 0 is the background, say so with a level of 0 (--mask-level 0)."
        )
    return grey > level


def alpha_mask(path: str | Path) -> np.ndarray:
    """Where an image is more than half opaque: (height, width), bool.

    Raises:
        ImageError: not an image that can be read.
        MaskError: the image has no transparency.
    """
    load_image(path)
    with Image.open(path) as image:
        image.load()
        if not image.has_transparency_data:
            raise MaskError(f"{printable(path)}: the image has no alpha channel to take a mask from.")
        upright = ImageOps.exif_transpose(image)
        return np.asarray(upright.convert("RGBA"))[..., 3] > LEVEL


def masks_by_stem(images: Sequence[Path], folder: str | Path) -> list[Path]:
    """The mask of each image: the file in `folder` of the same name without suffix.

    Raises:
        ImageError: a folder without image files.
        MaskError: an image without mask, or with several; two images of the same name.
    """
    found: dict[str, list[Path]] = {}
    for path in image_files([folder]):
        found.setdefault(path.stem, []).append(path)
    missing = [printable(path) for path in images if path.stem not in found]
    if missing:
        few = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise MaskError(f"{printable(folder)} must hold a mask named as each image, but has none for {few}.")
    several = next((path for path in images if len(found[path.stem]) > 1), None)
    if several is not None:
        names = ", ".join(printable(path.name) for path in found[several.stem])
        raise MaskError(f"{printable(several)}: one mask is needed, but {printable(folder)} holds {names}.")
    twice = len(images) != len({path.stem for path in images})
    if twice:
        raise MaskError("images must have different names, since a mask is found by the name of its image.")
    return [found[path.stem][0] for path in images]


def foreground_share(mask: np.ndarray, model: nn.Module, grid: tuple[int, int]) -> np.ndarray:
    """How much of each patch is foreground, as the model sees the image: (H, W), 0 … 1.

    The mask is resized and cropped exactly as `entropatch.data.images.cropped` does with the image.

    Args:
        mask: (height, width), bool, of the image's own size.
        model: a timm model.
        grid: (H, W), its patch grid.
    """
    seen = np.asarray(cropped(Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))), model))[..., 0] / 255
    return patch_means(seen, grid)


def patch_means(pixels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Mean over the pixels of each patch: (height, width, …) -> (H, W, …); the grid must divide the pixels."""
    (height, width), (rows, columns) = pixels.shape[:2], grid
    if height % rows or width % columns:
        raise ValueError(f"the patch grid {grid} must divide the image, but it has {height}×{width} pixels.")
    shape = (rows, height // rows, columns, width // columns, *pixels.shape[2:])
    return pixels.reshape(shape).mean((1, 3))


def check_size(mask: np.ndarray, image: Image.Image, name: str) -> None:
    """Raise MaskError unless the mask has the size of its image."""
    if mask.shape != (image.height, image.width):
        raise MaskError(
            f"{name}: the mask must have the size of its image, {image.width}×{image.height}, but has "
            f"{mask.shape[1]}×{mask.shape[0]}; resize it, or turn it upright as the image's EXIF orientation says."
        )
