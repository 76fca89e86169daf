"""Charts of entropies over many images: histograms per block, and entropy against attention distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from entropatch.figures.canvas import Page
from entropatch.figures.patches import entropy_label
from entropatch.figures.style import (
    COLOURS,
    FRAME,
    INK,
    LINE,
    LINE_STYLES,
    MARGIN,
    SMALL,
    SOFT_INK,
    dress,
    shortened,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_PANEL, _PANEL_HEIGHT, _APART = 1.55, 1.1, 0.12  # inches
_SQUARE, _LEFT, _BELOW = 2.35, 0.62, 0.5
DEPTH_COLOURS = "viridis"  # dark is early; even in lightness, so it reads in grey too


def entropy_histograms(
    edges: np.ndarray,
    counts: np.ndarray,
    orders: Sequence[float],
    blocks: Sequence[int] | None = None,
    *,
    title: str = "",
    note: str = "",
) -> Figure:
    """Histograms of the patches' attention entropy, one panel per block, one curve per order (the paper's Fig. 5).

    Args:
        edges: of the bins in nats, (bins + 1,).
        counts: patches per bin, (orders, blocks, bins).
        orders: one per row of `counts`.
        blocks: 0-based numbers of the blocks; 0, 1, … when None.
        title, note: a line above, and one below.

    Returns:
        A matplotlib Figure; `entropatch.figures.save_figure` writes it.

    Raises:
        ValueError: arrays that do not fit each other.
        ImportError: matplotlib is not installed.
    """
    numbers = list(range(counts.shape[1])) if blocks is None else list(blocks)
    if counts.shape != (len(orders), len(numbers), len(edges) - 1):
        raise ValueError(
            f"counts must be (orders, blocks, bins) = {(len(orders), len(numbers), len(edges) - 1)}, "
            f"but got {counts.shape}."
        )
    columns = min(_COLUMNS, len(numbers))
    rows = math.ceil(len(numbers) / columns)
    left, step, down = MARGIN + _LEFT, _PANEL + _APART, _PANEL_HEIGHT + 1.6 * LINE
    keys = (1.05 * math.ceil(len(orders) / 2) + 0.2) * LINE
    page = Page(left + columns * step + MARGIN, keys + rows * down + 2.6 * LINE, title, [note] if note else [])
    share = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    span = _span(edges, counts)
    axes: Any = None
    for number, block in enumerate(numbers):
        row, column = divmod(number, columns)
        top = page.top + keys + row * down + LINE
        axes = page.axes(left + column * step, top, _PANEL, _PANEL_HEIGHT)
        dress(axes)
        for place in range(len(orders)):
            line: dict[str, Any] = {
                "color": COLOURS[place % len(COLOURS)],
                "linestyle": LINE_STYLES[place % len(LINE_STYLES)],
            }
            axes.stairs(100 * share[place, number], edges, linewidth=1.1, label=entropy_label(orders[place]), **line)
        axes.set(xlim=span, ylim=(0, 105 * share.max()))
        last_of_column = number + columns >= len(numbers)
        axes.tick_params(labelleft=column == 0, labelbottom=last_of_column)
        page.text(left + column * step + _PANEL / 2, top - 0.03, f"block {block}", SMALL, ha="center", va="bottom")
    middle = left + (columns * step - _APART) / 2
    page.text(middle, page.top + keys + rows * down + 1.9 * LINE, "entropy (nats)", ha="center", va="center")
    page.text(MARGIN + 0.1, page.top + keys + rows * down / 2, "share of the patches (%)", rotation=90, va="center")
    _legend(page, axes)
    return page.figure


def entropy_against_distance(
    entropy: np.ndarray,
    distance: np.ndarray,
    orders: Sequence[float],
    correlations: Sequence[float],
    blocks: Sequence[int] | None = None,
    *,
    unit: str = "patches",
    title: str = "",
    note: str = "",
) -> Figure:
    """Attention entropy against attention distance, one dot per head and block, one panel per order (Fig. 6).

    Args:
        entropy: mean entropy of each head in nats, (orders, blocks, heads).
        distance: mean attention distance of each head, (blocks, heads).
        orders: one per panel.
        correlations: Spearman's rank correlation of each panel, to be written into it.
        blocks: 0-based numbers of the blocks; 0, 1, … when None.
        unit: of the distances.
        title, note: a line above, and one below.

    Returns:
        A matplotlib Figure; `entropatch.figures.save_figure` writes it.

    Raises:
        ValueError: arrays that do not fit each other.
        ImportError: matplotlib is not installed.
    """
    if entropy.shape != (len(orders), *distance.shape) or len(correlations) != len(orders):
        raise ValueError(
            f"entropy must be (orders, blocks, heads) = {(len(orders), *distance.shape)} with one correlation per "
            f"order, but got {entropy.shape} and {len(correlations)} correlations."
        )
    numbers = list(range(len(distance))) if blocks is None else list(blocks)
    left, step = MARGIN + _LEFT, _SQUARE + 2 * _APART
    page = Page(left + len(orders) * step + 0.6, _SQUARE + _BELOW + 2.5 * LINE, title, [note] if note else [])
    top = page.top + 2.3 * LINE
    low, high = entropy.min(), entropy.max()
    room = 0.06 * max(high - low, 1e-3)
    dots: Any = None
    for place, order in enumerate(orders):
        axes = page.axes(left + place * step, top, _SQUARE, _SQUARE)
        dress(axes, f"attention distance ({unit})", "attention entropy (nats)" if place == 0 else "")
        colours = np.repeat(numbers, distance.shape[1])
        dots = axes.scatter(
            distance.ravel(),
            entropy[place].ravel(),
            c=colours,
            cmap=DEPTH_COLOURS,
            s=16,
            linewidths=0.3,
            edgecolors="w",
        )
        axes.set_ylim(low - room, high + room)
        axes.tick_params(labelleft=place == 0)
        page.text(left + place * step, top - 0.05 - LINE, shortened(entropy_label(order), 32), va="bottom")
        correlation = f"Spearman's rank correlation {correlations[place]:+.2f}"
        page.text(left + place * step, top - 0.04, correlation, SMALL, SOFT_INK, va="bottom")
    _depth_bar(page, dots, left + len(orders) * step - _APART / 2, top)
    return page.figure


def _span(edges: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The bins that hold anything, with one beside them."""
    filled = np.flatnonzero(counts.sum((0, 1)))
    if not len(filled):
        return float(edges[0]), float(edges[-1])
    return float(edges[max(filled[0] - 1, 0)]), float(edges[min(filled[-1] + 2, len(edges) - 1)])


def _legend(page: Page, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    with style():
        page.figure.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=((MARGIN + _LEFT - 0.05) / page.width, 1 - (page.top - 0.03) / page.height),
            ncols=2,
            frameon=False,
            fontsize=SMALL,
            labelcolor=INK,
            borderpad=0,
            borderaxespad=0,
            labelspacing=0.4,
        )


def _depth_bar(page: Page, dots: Any, x: float, top: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = page.axes(x, top, 0.1, _SQUARE)
    with style():
        bar = page.figure.colorbar(dots, cax=axes, ticks=MaxNLocator(6, integer=True))
        bar.ax.tick_params(labelsize=SMALL, length=2, color=FRAME, labelcolor=INK)
        bar.set_label("block", fontsize=SMALL, color=INK)
