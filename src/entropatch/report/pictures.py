"""Image files of a run, checked and made ready to stand inside a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from entropatch.data.images import printable
from entropatch.report.content import Picture, ReportError, reading

SUFFIXES = (".png", ".svg")
# Pixels of the page per inch of a figure. A page has 96; figures drawn for print read better a little larger.
PER_INCH = 130


def choose_pictures(files: Sequence[Path]) -> list[Path]:
    """The pictures among the files, by name; of one that is there as PNG and as SVG, the smaller file."""
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    stems = dict.fromkeys(file.with_suffix("") for file in pictures)
    return [
        min((file for file in pictures if file.with_suffix("") == stem), key=lambda file: file.stat().st_size)
        for stem in stems
    ]


def read_picture(path: Path) -> Picture:
    """A PNG or SVG file as it is. Raises ReportError for one that is damaged."""
    data = reading(path, lambda file: file.read_bytes())
    if path.suffix.lower() == ".svg":
        return Picture(path.stem, data, "image/svg+xml", _svg_size(path, data))
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.format != "PNG":
                raise ValueError(f"its content is {image.format}, not PNG")
            per_inch = float(image.info.get("dpi", (PER_INCH,))[0]) or PER_INCH
            width, height = (round(side * PER_INCH / per_inch) for side in image.size)
            return Picture(path.stem, data, "image/png", (width, height))
    except Exception as error:  # Pillow's decoders let through whatever a damaged file provokes
        raise ReportError(f"{printable(path)}: damaged: {' '.join(str(error).split())[:200]}.") from error


def _svg_size(path: Path, data: bytes) -> tuple[int, int] | None:
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ReportError(f"{printable(path)}: damaged: {error}.") from error
    if not root.tag.endswith("svg"):
        raise ReportError(f"{printable(path)}: damaged: not an SVG file, but one of <{root.tag[:50]}>.")
    width, height = (_pixels(root.get(name, "")) for name in ("width", "height"))
    return None if width is None or height is None else (width, height)


def _pixels(length: str) -> int | None:
    """A length of an SVG in pixels of the page: 72 points, or 96 of its pixels, are an inch."""
    found = re.fullmatch(r"(\d+\.?\d*)(pt|px|)", length.strip())
    return None if found is None else round(float(found[1]) * PER_INCH / (72 if found[2] == "pt" else 96))
