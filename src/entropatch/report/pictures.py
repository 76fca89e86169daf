"""Image files of a run, checked and made ready to stand inside a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from entropatch.report.content import Picture, reading

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".svg")
# Pixels of the page per inch of a figure. A page has 96; figures drawn for print read better a little larger.
PER_INCH = 130
# Pixels that a picture may have on the page, which is so wide, and how well it is kept there.
WIDEST, HIGHEST, QUALITY = 1112, 4000, 85
# A PNG of a figure takes about so many bytes, once it is as small as it is shown.
PNG_WEIGHT = 200_000
SMALL = 10_000  # bytes, of a file that is taken as it is


def choose_pictures(files: Sequence[Path]) -> list[Path]:
    """The pictures among the files, by name; of one that is there as PNG and as SVG, the one that takes less room."""
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    stems = dict.fromkeys(file.with_suffix("") for file in pictures)
    return [min((file for file in pictures if file.with_suffix("") == stem), key=_weight) for stem in stems]


def read_picture(path: Path) -> Picture:
    """A PNG or SVG file as the page shows it. Raises ReportError for one that is damaged."""
    picture = reading(path, _svg if path.suffix.lower() == ".svg" else _png)
    return replace(picture, original=path)


def _weight(path: Path) -> int:
    """Bytes of a picture in the page: an SVG stands there as it is, a PNG as small as it is shown."""
    size = path.stat().st_size
    return min(size, PNG_WEIGHT) if path.suffix.lower() == ".png" else size


def _png(path: Path) -> Picture:
    from PIL import Image

    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if image.format != "PNG":
            raise ValueError(f"its content is {image.format}, not PNG")
        per_inch = float(image.info.get("dpi", (PER_INCH,))[0])
        scale = PER_INCH / per_inch if math.isfinite(per_inch) and per_inch > 0 else 1.0
        size = _fitting(image.width * scale, image.height * scale)
        if len(data) <= SMALL:
            return Picture(path.stem, data, "image/png", size)
        small, kind = _encoded(image, size)
    return Picture(path.stem, small, f"image/{kind}", size)


def _encoded(image: Image, size: tuple[int, int]) -> tuple[bytes, str]:
    """An image of at most that size, as WebP, or as JPEG where Pillow was built without."""
    from PIL import Image, features

    flat = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", flat.size, "white"), flat).convert("RGB")
    if size[0] < image.width:
        flat = flat.resize(size, Image.Resampling.LANCZOS)
    kind = "webp" if features.check("webp") else "jpeg"
    buffer = io.BytesIO()
    flat.save(buffer, kind, quality=QUALITY)
    return buffer.getvalue(), kind


def _fitting(width: float, height: float) -> tuple[int, int]:
    """A size on the page, no wider than the page and no higher than `HIGHEST`."""
    scale = min(1.0, WIDEST / width, HIGHEST / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _svg(path: Path) -> Picture:
    data = path.read_bytes()
    root = ElementTree.fromstring(data)
    if not root.tag.endswith("svg"):
        raise ValueError(f"not an SVG file, but one of <{root.tag[:50]}>")
    width, height = (_pixels(root.get(name, "")) for name in ("width", "height"))
    size = None if not width or not height else _fitting(width, height)
    return Picture(path.stem, data, "image/svg+xml", size)


def _pixels(length: str) -> float | None:
    """A length of an SVG in pixels of the page: 72 points, or 96 of its pixels, are an inch."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d*)?)(pt|px|)", length.strip())
    return None if found is None else float(found[1]) * PER_INCH / (72 if found[2] == "pt" else 96)
