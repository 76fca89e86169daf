"""Equally large pictures on a page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

import numpy as np

from entropatch.figures.canvas import Page
from entropatch.figures.style import ENTROPY_COLOURS, FRAME, INK, LINE, MARGIN, SMALL, SOFT_INK, shortened, style

# Inches. At 175 dots per inch a cell is 224 dots wide: most models' input, pixel for pixel.
CELL, GAP = 1.28, 0.07
STRIP, STANDING = 0.4, 1.2  # width and height for a label standing on its side
LABELS, LYING = 1.35, 0.6  # and for one lying
BAR = 0.66
HEAD, HEADS = 18, 2.6 * LINE  # letters across a column, and the room of two lines above it


class Sheet(Page):
    """Equally large pictures in rows and columns, with labels, heads, a colour bar and notes; laid out in inches."""

    cell: tuple[float, float]
    left: float
    row: float
    top: float
    tops: list[float]

    def __init__(
        self,
        below: Sequence[float],
        columns: int,
        left: float,
        crop: np.ndarray,
        title: str,
        notes: Iterable[str],
        lowest: float,
        bar: bool = True,
    ):
        """`below` holds the room under each row, `left` that beside the first column; no row is under `lowest`."""
        self.cell = (CELL, CELL * min(max(crop.shape[0] / crop.shape[1], 0.4), 2.5))
        self.left = MARGIN + left
        self.row = max(self.cell[1], lowest)
        heights = [self.row + room + GAP for room in below]
        super().__init__(
            self.left + columns * (CELL + GAP) + (BAR if bar else MARGIN), HEADS + sum(heights), title, notes
        )
        self.top += HEADS
        self.tops = [self.top + sum(heights[:row]) for row in range(len(below))]

    def head(self, column: int, text: str) -> None:
        """A few words above a column, on two lines at most."""
        x = self.left + column * (CELL + GAP) + CELL / 2
        first, *others = textwrap.wrap(shortened(text, 2 * HEAD), HEAD)
        lines = [first, shortened(" ".join(others), HEAD)] if others else [first]
        self.text(x, self.top - 0.05, "\n".join(lines), ha="center", va="bottom", linespacing=1.15)

    def label(self, row: int, text: str, small: str) -> None:
        """A label left of a row, and a smaller line under it."""
        x, y = self.left - 0.1, self.tops[row] + self.row / 2
        self.text(x, y, textwrap.fill(text, 17), ha="right", va="bottom", linespacing=1.25)
        self.text(x, y + 0.04, small, SMALL, SOFT_INK, ha="right", va="top")

    def side_label(self, row: int, text: str) -> None:
        """A label standing on its side, left of a row."""
        y = self.tops[row] + self.row / 2
        lines = textwrap.fill(text, 17)
        self.text(self.left - STRIP / 2, y, lines, rotation=90, ha="center", va="center", linespacing=1.15)

    def paragraph(self, row: int, text: str) -> None:
        """A few lines in the room left of a row's label."""
        x, y = self.left - STRIP - GAP, self.tops[row] + self.row / 2
        lines = textwrap.fill(text, 22)
        self.text(x, y, lines, SMALL, SOFT_INK, ha="right", va="center", linespacing=1.35)

    def picture(self, row: int, column: float, pixels: np.ndarray, below: str = "") -> None:
        """Pixels (height, width, 3) in 0 … 1; a negative `column` is an offset in inches from the first."""
        left = self.left + (column if column < 0 else column * (CELL + GAP))
        top = self.tops[row] + (self.row - self.cell[1]) / 2
        axes = self.axes(left, top, *self.cell)
        axes.imshow(pixels, interpolation="antialiased", aspect="auto")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(linewidth=0.5, edgecolor=FRAME)
        if below:
            self.text(left + CELL / 2, top + self.cell[1] + 0.025, below, SMALL, SOFT_INK, ha="center", va="top")

    def colour_bar(self, first: int, end: int, limits: tuple[float, float] | None) -> None:
        """A colour bar at the right of rows first … end - 1, in nats; without numbers for pictures with their own."""
        import matplotlib
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        top, bottom = self.tops[first], self.tops[end - 1] + self.row
        axes = self.axes(self.width - BAR + 0.03, top, 0.1, bottom - top)
        with style():
            colours = ScalarMappable(Normalize(*(limits or (0, 1))), matplotlib.colormaps[ENTROPY_COLOURS])
            bar = self.figure.colorbar(colours, cax=axes, extend="both", ticks=None if limits else [])
            bar.ax.tick_params(labelsize=SMALL, length=2, color=FRAME, labelcolor=INK)
            bar.set_label("entropy (nats)" if limits else "entropy, low to high", fontsize=SMALL, color=INK)
