"""A page laid out in inches: a title above, the drawing, notes below."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from entropatch.figures.fonts import families_for, legible
from entropatch.figures.style import (
    INK,
    LETTERS_PER_INCH,
    LINE,
    MARGIN,
    SMALL,
    SOFT_INK,
    TEXT,
    TITLE,
    narrowed,
    new_figure,
    shortened,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE_ROOM, TITLE_LINE = 1.5 * LINE, 0.2
TITLE_LETTERS_PER_INCH = 8.0
TITLE_LINES = 2


class Page:
    """A figure with a title and notes, and room for the drawing between them.

    Attributes:
        figure: the matplotlib figure.
        width, height: of the whole page.
        top: where the drawing begins, from the top.
    """

    width: float
    top: float
    height: float
    figure: Figure

    def __init__(self, width: float, drawing: float, title: str = "", notes: Iterable[str] = ()):
        """`drawing` is the height of the room for the drawing."""
        head = title_lines(title, int(width * TITLE_LETTERS_PER_INCH))
        self.width, self.top = width, MARGIN + (TITLE_ROOM + TITLE_LINE * (len(head) - 1) if head else 0.0)
        letters = int(width * LETTERS_PER_INCH)
        lines = [line for note in map(legible, notes) for line in textwrap.wrap(note, narrowed(letters, note))]
        end = self.top + drawing
        self.height = end + len(lines) * LINE + MARGIN
        self.figure = new_figure(self.width, self.height)
        for number, line in enumerate(head):
            self.text(MARGIN, MARGIN - 0.03 + number * TITLE_LINE, line, TITLE, weight="bold", va="top")
        for number, line in enumerate(lines):
            self.text(MARGIN, end + (number + 0.6) * LINE, line, SMALL, SOFT_INK, va="center")

    def text(self, x: float, y: float, text: str, size: float = TEXT, color: str = INK, **how: Any) -> None:
        """Text at x inches from the left and y from the top, literally: a $ in it starts no formula."""
        with style():
            place = (x / self.width, 1 - y / self.height)
            text = legible(text)
            how = {"fontfamily": families_for(text), "parse_math": False, **how}
            self.figure.text(*place, text, fontsize=size, color=color, **how)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes whose upper left corner lies x inches from the left and y from the top."""
        with style():
            return self.figure.add_axes(
                (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
            )


def title_lines(title: str, letters: int) -> list[str]:
    """A title on at most two lines of so many letters; the middle of a longer one is left out."""
    title = legible(title)
    narrow = narrowed(letters, title)
    lines = textwrap.wrap(shortened(title, TITLE_LINES * letters), narrow)
    if len(lines) > TITLE_LINES:  # the words do not fill their lines
        lines = textwrap.wrap(shortened(title, TITLE_LINES * letters - letters // 2), narrow)
    return lines[:TITLE_LINES]
