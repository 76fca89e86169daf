"""The sizes, fonts and colours all figures share."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from itertools import count
from typing import TYPE_CHECKING, Any

from entropatch.extras import require
from entropatch.figures.fonts import FAMILY, columns, legible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue is low and red is high; of the maps with this reading RdYlBu is one that colour-blind eyes can tell apart.
ENTROPY_COLOURS = "RdYlBu_r"
DPI = 175

SETTINGS: Any = {
    "font.family": FAMILY,
    "svg.fonttype": "path",
    "svg.hashsalt": "entropatch",
    "text.usetex": False,
}
TITLE, TEXT, SMALL = 11.0, 9.0, 7.5  # points
INK, SOFT_INK, FRAME = "#1a1a1a", "#4d4d4d", "#8a8a8a"
LETTERS_PER_INCH = 14.5  # of the small font, on average
MARGIN, LINE = 0.12, 0.16  # inches

# Okabe and Ito's colours, which colour-blind eyes tell apart, and three more; their yellow is too light for a line and
# comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A", "#5E3C99", "#8C510A", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
LINE_STYLES = ("-", "--", "-.", ":")
# Which of them those have that most comparisons show, so that each looks the same in all pictures.
_PLACES = {
    "rényi, order ∞": 0,
    "evit": 1,
    "shannon": 2,
    "calibrated": 3,
    "tome": 4,
    "rényi, order 2": 5,
    "random": 6,
    "the default": 7,
    "tome, fewer from block to block": 8,
}
# Points with error bars, joined by a line.
ERROR_BARS: dict[str, Any] = {
    "markersize": 4.5,
    "linewidth": 1.1,
    "elinewidth": 0.8,
    "capsize": 2,
    "markeredgecolor": "white",
    "markeredgewidth": 0.4,
}


def looks(labels: Iterable[str]) -> dict[str, dict[str, str]]:
    """Colour, marker and line style of each label: no two alike, up to dozens; a method's the same in all figures."""
    labels = list(dict.fromkeys(labels))
    places: dict[int, str] = {}  # known labels by their places
    for label in labels:
        place = _PLACES.get(label.partition(" (")[0].casefold())
        if place is not None:
            places.setdefault(place, label)
    known = {label: (place, 0) for place, label in places.items()}
    rounds = ((place, turn) for turn in count() for place in range(len(COLOURS)))
    free = (one for one in rounds if one not in known.values())
    found = {label: known[label] if label in known else next(free) for label in labels}
    return {
        label: {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": LINE_STYLES[turn % len(LINE_STYLES)]}
        for label, (place, turn) in found.items()
    }


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


def dress(axes: Axes, x: str = "", y: str = "") -> None:
    """The frame, grid, ticks and axis labels all charts have."""
    with style():
        axes.grid(color="#e3e3e3", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=SMALL, length=2, color=FRAME, labelcolor=INK)
        axes.set_xlabel(x, fontsize=TEXT, color=INK)
        axes.set_ylabel(y, fontsize=TEXT, color=INK)
        for side, spine in axes.spines.items():
            spine.set(linewidth=0.5, edgecolor=FRAME, visible=side in ("left", "bottom"))


def shortened(text: str, longest: int) -> str:
    """The text on one line as figures can draw it, its middle left out if it is wider than `longest` letters."""
    text = legible(" ".join(text.split()))
    longest = narrowed(longest, text)
    return text if len(text) <= longest else text[: longest // 2] + "…" + text[-(longest - longest // 2 - 1) :]


def narrowed(letters: int, text: str) -> int:
    """How many letters like those of the text take the room of so many usual ones."""
    return max(4, letters * len(text) // max(columns(text), 1))
