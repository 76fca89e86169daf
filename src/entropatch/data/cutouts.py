"""Objects cut out of their photographs and pasted on others: which pixels show the object is known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from entropatch.data.base import DataError, LabelledImages
from entropatch.data.images import ImageError, printable
from entropatch.data.masks import LEVEL, MaskError, alpha_mask


@dataclass(frozen=True)
class CutOut:
    """An object with an alpha channel, cut to its opaque part.

    Attributes:
        path: its file.
        picture: RGBA.
        opaque: how many pixels are more than half opaque.
    """

    path: Path
    picture: Image.Image
    opaque: int

    def enlarged(self, area: float) -> float:
        """By how much its sides are enlarged so that its opaque pixels become so many."""
        return math.sqrt(area / self.opaque)

    def fits(self, area: float, side: int) -> bool:
        """Whether it lies inside a square of that side once its opaque pixels are so many."""
        return round(max(self.picture.size) * self.enlarged(area)) <= side

    def scaled(self, area: float) -> Image.Image:
        """The object with so many opaque pixels, but for the rounding of its sides."""
        factor = self.enlarged(area)
        width, height = (max(1, round(length * factor)) for length in self.picture.size)
        # Pillow weighs colours by their alpha here, so nothing of the transparent part's colour is mixed into the rim.
        return self.picture.resize((width, height), Image.Resampling.LANCZOS)


def read_cutout(path: str | Path) -> CutOut:
    """The object in a file with an alpha channel.

    Raises:
        ImageError: not an image that can be read.
        MaskError: no alpha channel, or nothing that is more than half opaque.
    """
    mask = alpha_mask(path)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise MaskError(f"{printable(path)}: nothing in this image is more than half opaque.")
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return CutOut(Path(path), picture.crop(box), int(mask.sum()))


def find_cutouts(
    files: Sequence[str | Path], side: int, shares: Sequence[float], most_enlarged: float = 2.0
) -> tuple[list[CutOut], list[str]]:
    """Those of the files that can be pasted at every size, in their order, and why each of the others cannot.

    Args:
        files: with alpha channels.
        side: of the square they are pasted into, in pixels.
        shares: of that square's area that their opaque pixels shall take.
        most_enlarged: largest enlargement of their sides; a picture enlarged further is blurred beside a photograph.
    """
    found, refused = [], []
    for file in files:
        try:
            cutout = read_cutout(file)
        except (ImageError, MaskError) as error:
            refused.append(str(error))
            continue
        area = max(shares) * side * side
        if cutout.enlarged(area) > most_enlarged:
            refused.append(f"{printable(file)}: too small, to be enlarged {cutout.enlarged(area):.1f} times.")
        elif not cutout.fits(area, side):
            refused.append(f"{printable(file)}: too long or too thin to take {max(shares):.0%} of the square.")
        else:
            found.append(cutout)
    return found, refused


class CutOutsOnPhotographs:
    """Object i on a photograph and at a place that depend on (seed, i) alone, the same for every size.

    The photograph's middle square is scaled to `canvas`; the object lies wholly inside the middle square of side
    `side`, its alpha channel blends it in, and its mask is where that is more than half. What else the photograph shows
    counts as background, an object of its own too.

    Args:
        cutouts: the objects; number i is pasted on a photograph of its own.
        photographs: at least as many.
        side: of the square that the model sees, in pixels.
        canvas: side of the picture; larger than `side` for a model that crops.
        seed: of photographs and places.

    Raises:
        DataError: fewer photographs than objects.
    """

    cutouts: list[CutOut]
    photographs: LabelledImages
    side: int
    canvas: int
    seed: int
    backgrounds: list[int]

    def __init__(
        self,
        cutouts: Sequence[CutOut],
        photographs: LabelledImages,
        side: int,
        canvas: int | None = None,
        seed: int = 0,
    ):
        if len(photographs) < len(cutouts):
            raise DataError(
                f"there must be a photograph for each of the {len(cutouts)} objects, but there are {len(photographs)}."
            )
        self.cutouts, self.photographs = list(cutouts), photographs
        self.side, self.canvas, self.seed = side, canvas or side, seed
        chosen = np.random.default_rng(seed).permutation(len(photographs))
        self.backgrounds = [int(number) for number in chosen[: len(cutouts)]]

    def __len__(self) -> int:
        return len(self.cutouts)

    def pasted(self, index: int, share: float) -> tuple[Image.Image, np.ndarray]:
        """Object `index` taking `share` of the square: the picture (RGB), and its mask (canvas, canvas), bool."""
        cutout = self.cutouts[index].scaled(share * self.side**2)
        photograph = self.photographs.image(self.backgrounds[index])
        edge, margin = min(photograph.size), (self.canvas - self.side) // 2
        left, top = ((length - edge) // 2 for length in photograph.size)
        box = (left, top, left + edge, top + edge)
        picture = photograph.resize((self.canvas, self.canvas), Image.Resampling.BICUBIC, box)
        free = [self.side - length for length in cutout.size]
        draw = np.random.default_rng((self.seed, 1, index)).random(2)
        x, y = (margin + round(room * part) for room, part in zip(free, draw.tolist(), strict=True))
        picture.paste(cutout, (x, y), cutout)
        mask = np.zeros((self.canvas, self.canvas), bool)
        alpha = np.asarray(cutout)[..., 3]
        mask[y : y + cutout.height, x : x + cutout.width] = alpha > LEVEL
        return picture, mask
