"""Figures into files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropatch.figures.fonts import quietly
from entropatch.figures.style import DPI, style
from entropatch.records.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a figure to `path`, whole or not at all; the suffix chooses the format, .png or .svg.

    Args:
        figure: as the functions here return it.
        path: the file; its folder is made if missing.
        metadata: further keywords and texts for a PNG; an SVG takes those of Dublin Core only.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".png", ".svg"):
        raise ValueError(f"a figure is saved as .png or .svg, but got {str(path)!r}.")
    # Without a date the same figure gives the same bytes.
    fixed: dict[str, Any] = {"Date": None} if kind == ".svg" else {}
    with replacing(path) as temporary, style(), quietly():
        figure.savefig(temporary, format=kind[1:], dpi=DPI, metadata={**fixed, **(metadata or {})})
    return path
