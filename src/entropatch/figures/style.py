"""The sizes, fonts and colours all figures share."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from entropatch.files import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Blue is low and red is high; of the maps with this reading RdYlBu is one that colour-blind eyes can tell apart.
ENTROPY_COLOURS = "RdYlBu_r"
DPI = 175

SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "svg.fonttype": "path",
    "svg.hashsalt": "entropatch",
    "text.usetex": False,
}
TITLE, TEXT, SMALL = 11.0, 9.0, 7.5  # points
INK, SOFT_INK, FRAME = "#1a1a1a", "#4d4d4d", "#8a8a8a"
LETTERS_PER_INCH = 14.5  # of the small font, on average
MARGIN, LINE = 0.12, 0.16  # inches


def style() -> AbstractContextManager[None]:
    """The fonts of this file inside, the caller's settings again afterwards."""
    import matplotlib

    return matplotlib.rc_context(SETTINGS)


def new_figure(width: float, height: float) -> Figure:
    require("matplotlib", "figures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
    return figure


def shortened(text: str, longest: int) -> str:
    """The text on one line, its middle left out if it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest // 2] + "…" + text[-(longest - longest // 2 - 1) :]
