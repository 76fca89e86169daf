"""Pictures of what pruning does: entropy heat maps over the image, and the patches that remain.

Everything is drawn from arrays, none of it touches a model, and none of matplotlib's global state is used, so the
functions run without a display and leave the caller's plots alone. Sizes and fonts are the same in all figures.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entropatch.files import replacing, require
from entropatch.methods import find_method, method_label, renyi_method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from entropatch.inspection import Inspection, Stages

# Blue is low and red is high; of the maps with this reading RdYlBu is one that colour-blind eyes can tell apart.
ENTROPY_COLOURS = "RdYlBu_r"
DPI = 175

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "svg.fonttype": "path",
    "svg.hashsalt": "entropatch",
    "text.usetex": False,
}
_TITLE, _TEXT, _SMALL = 11.0, 9.0, 7.5  # points
_INK, _SOFT_INK, _FRAME = "#1a1a1a", "#4d4d4d", "#8a8a8a"
_LUMINANCE = np.array([0.299, 0.587, 0.114])

# Inches. At 175 dots per inch a cell is 224 dots wide: most models' input, pixel for pixel.
_CELL, _GAP, _MARGIN, _LINE = 1.28, 0.07, 0.12, 0.16
_STRIP, _STANDING = 0.4, 1.2  # width and height for a label standing on its side
_LABELS, _LYING = 1.35, 0.6  # and for one lying
_BAR = 0.66
_LETTERS_PER_INCH = 14.5  # of the small font, on average


# ----------------------------------------------------------------------------------------------------- figures


def entropy_and_stages(inspection: Inspection, *, title: str = "", note: str = "") -> Figure:
    """One image: its entropy heat map at each pruning block, and what each method leaves after each.

    The first rows are heat maps, one row per order, on one colour scale in nats; they show the unpruned model. The
    rows below show each method's kept patches in colour, the pruned ones greyed, with the count under each.

    Args:
        inspection: the arrays, as `entropatch.inspection.inspect_image` gives them.
        title: a line above, such as the file's name; taken literally.
        note: a line below, such as the model and the keep rate.

    Returns:
        A matplotlib Figure; `save_figure` writes it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    crop, entropy, stages = inspection.crop, inspection.entropy, inspection.stages
    below = [0.0] * (len(entropy) - 1) + [0.08] + [_LINE] * len(stages)
    notes = [_about(inspection), note]
    sheet = _Sheet(below, len(inspection.blocks), _CELL + _STRIP, crop, title, notes, lowest=_STANDING)
    sheet.picture(0, -_CELL - _STRIP, crop / 255)
    sheet.text(_MARGIN + _CELL / 2, sheet.top - 0.05, "as the model sees it", ha="center", va="bottom")
    limits = _limits(entropy.values())
    for column, block in enumerate(inspection.blocks):
        sheet.head(column, f"block {block}")
        for row, maps in enumerate(entropy.values()):
            sheet.picture(row, column, _heat(crop, maps[column], limits))
        for row, method in enumerate(stages.values(), len(entropy)):
            sheet.picture(row, column, _remaining(crop, method.kept[column]), _count(method, column))
    sheet.colour_bar(0, len(entropy), limits)
    for row, order in enumerate(entropy):
        sheet.side_label(row, _entropy_label(order))
    for row, name in enumerate(stages, len(entropy)):
        sheet.side_label(row, method_label(name))
        sheet.paragraph(row, find_method(name).description)
    return sheet.figure


def overview(
    inspections: Mapping[str, Inspection], *, order: float | None = None, stage: int = -1, title: str = ""
) -> Figure:
    """Several images side by side: each one, its entropy heat map, and what each method leaves of it.

    Args:
        inspections: one per image, by the name to write above it; all of the same methods and orders.
        order: order of the entropy shown; None means the last one that was measured.
        stage: which pruning stage to show; -1 is the last.
        title: a line above.

    Returns:
        A matplotlib Figure; `save_figure` writes it.

    Raises:
        ValueError: no images, images of different methods, or an order that was not measured.
        ImportError: matplotlib is not installed.
    """
    if not inspections:
        raise ValueError("inspections must hold at least one image, but got none.")
    first, *others = inspections.values()
    if any(list(one.stages) != list(first.stages) or list(one.entropy) != list(first.entropy) for one in others):
        raise ValueError("all images of an overview must be inspected with the same methods and orders.")
    shown = list(first.entropy)[-1] if order is None else order
    if shown not in first.entropy:
        raise ValueError(f"order must be one that was measured, {list(first.entropy)}, but got {shown!r}.")
    sheet = _Sheet(
        [0.0] * (2 + len(first.stages)), len(inspections), _LABELS, first.crop, title, [_about(first)], lowest=_LYING
    )
    sheet.label(1, _entropy_label(shown), f"block {first.blocks[stage]}")
    for row, (name, method) in enumerate(first.stages.items(), 2):
        sheet.label(row, method_label(name), f"{method.tokens[1:][stage]} of {method.tokens[0]} tokens")
    limits = _limits(one.entropy[shown][stage] for one in inspections.values())
    for column, (name, one) in enumerate(inspections.items()):
        sheet.head(column, name)
        sheet.picture(0, column, one.crop / 255)
        sheet.picture(1, column, _heat(one.crop, one.entropy[shown][stage], limits))
        for row, method in enumerate(one.stages.values(), 2):
            sheet.picture(row, column, _remaining(one.crop, method.kept[stage]))
    sheet.colour_bar(1, 2, limits)
    return sheet.figure


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
    with replacing(path) as temporary, _style(), warnings.catch_warnings():
        # A file name in a script the font lacks is drawn as boxes; the picture is sound.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, format=kind[1:], dpi=DPI, metadata={**fixed, **(metadata or {})})
    return path


# ------------------------------------------------------------------------------------------------- the drawing


class _Sheet:
    """Equally large pictures in rows and columns, with labels, heads, a colour bar and notes; laid out in inches."""

    def __init__(
        self,
        below: Sequence[float],
        columns: int,
        left: float,
        crop: np.ndarray,
        title: str,
        notes: Iterable[str],
        lowest: float,
    ):
        """`below` holds the room under each row, `left` that beside the first column; no row is under `lowest`."""
        self.cell = (_CELL, _CELL * min(max(crop.shape[0] / crop.shape[1], 0.4), 2.5))
        self.left = _MARGIN + left
        self.top = _MARGIN + (1.5 * _LINE if title else 0.0) + 1.3 * _LINE
        self.row = max(self.cell[1], lowest)
        heights = [self.row + room + _GAP for room in below]
        self.tops = [self.top + sum(heights[:row]) for row in range(len(below))]
        end = self.top + sum(heights)
        self.width = self.left + columns * (_CELL + _GAP) + _BAR
        letters = int(self.width * _LETTERS_PER_INCH)
        lines = [line for note in notes for line in textwrap.wrap(note, letters)]
        self.height = end + len(lines) * _LINE + _MARGIN
        self.figure = _new_figure(self.width, self.height)
        if title:
            self.text(_MARGIN, _MARGIN - 0.03, _shortened(title, letters // 2), _TITLE, weight="bold", va="top")
        for number, line in enumerate(lines):
            self.text(_MARGIN, end + (number + 0.6) * _LINE, line, _SMALL, _SOFT_INK, va="center")

    def text(self, x: float, y: float, text: str, size: float = _TEXT, color: str = _INK, **how: Any) -> None:
        """Text at x inches from the left and y from the top, literally: a $ in it starts no formula."""
        with _style():
            place = (x / self.width, 1 - y / self.height)
            self.figure.text(*place, text, fontsize=size, color=color, parse_math=False, **how)

    def head(self, column: int, text: str) -> None:
        """A word or two above a column."""
        x = self.left + column * (_CELL + _GAP) + _CELL / 2
        self.text(x, self.top - 0.05, _shortened(text, 20), ha="center", va="bottom")

    def label(self, row: int, text: str, small: str) -> None:
        """A label left of a row, and a smaller line under it."""
        x, y = self.left - 0.1, self.tops[row] + self.row / 2
        self.text(x, y, textwrap.fill(text, 17), ha="right", va="bottom", linespacing=1.25)
        self.text(x, y + 0.04, small, _SMALL, _SOFT_INK, ha="right", va="top")

    def side_label(self, row: int, text: str) -> None:
        """A label standing on its side, left of a row."""
        y = self.tops[row] + self.row / 2
        lines = textwrap.fill(text, 17)
        self.text(self.left - _STRIP / 2, y, lines, rotation=90, ha="center", va="center", linespacing=1.15)

    def paragraph(self, row: int, text: str) -> None:
        """A few lines in the room left of a row's label."""
        x, y = self.left - _STRIP - _GAP, self.tops[row] + self.row / 2
        lines = textwrap.fill(text, 22)
        self.text(x, y, lines, _SMALL, _SOFT_INK, ha="right", va="center", linespacing=1.35)

    def picture(self, row: int, column: float, pixels: np.ndarray, below: str = "") -> None:
        """Pixels (height, width, 3) in 0 … 1; a negative `column` is an offset in inches from the first."""
        left = self.left + (column if column < 0 else column * (_CELL + _GAP))
        top = self.tops[row] + (self.row - self.cell[1]) / 2
        axes = self.axes(left, top, *self.cell)
        axes.imshow(pixels, interpolation="antialiased", aspect="auto")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(linewidth=0.5, edgecolor=_FRAME)
        if below:
            self.text(left + _CELL / 2, top + self.cell[1] + 0.025, below, _SMALL, _SOFT_INK, ha="center", va="top")

    def colour_bar(self, first: int, end: int, limits: tuple[float, float]) -> None:
        """A colour bar in nats at the right of rows first … end - 1."""
        import matplotlib
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        top, bottom = self.tops[first], self.tops[end - 1] + self.row
        axes = self.axes(self.width - _BAR + 0.03, top, 0.1, bottom - top)
        with _style():
            colours = ScalarMappable(Normalize(*limits), matplotlib.colormaps[ENTROPY_COLOURS])
            bar = self.figure.colorbar(colours, cax=axes, extend="both")
            bar.ax.tick_params(labelsize=_SMALL, length=2, color=_FRAME, labelcolor=_INK)
            bar.set_label("entropy (nats)", fontsize=_SMALL, color=_INK)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        with _style():
            return self.figure.add_axes(
                (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
            )


def _style() -> AbstractContextManager[None]:
    """The fonts of this file inside, the caller's settings again afterwards."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def _new_figure(width: float, height: float) -> Figure:
    require("matplotlib", "figures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
    return figure


# -------------------------------------------------------------------------------------------------- the pixels


def _limits(maps: Iterable[np.ndarray]) -> tuple[float, float]:
    """Ends of the colour scale: the 1st and 99th percentile, so that no single patch sets it."""
    low, high = (float(x) for x in np.percentile(np.concatenate([np.ravel(one) for one in maps]), (1, 99)))
    return (low, high) if high - low > 1e-3 else (low - 0.05, high + 0.05)


def _heat(crop: np.ndarray, values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """The map (H, W) in colours, with the image's light and dark faintly in it: (height, width, 3) in 0 … 1.

    Only what deviates from the patch's own mean is laid over it, so that its colour stays that of the colour bar.
    """
    import matplotlib

    low, high = limits
    colours = matplotlib.colormaps[ENTROPY_COLOURS]((values - low) / (high - low))[..., :3]
    grey = crop / 255 @ _LUMINANCE
    detail = grey - _to_pixels(_patch_means(grey, values.shape), crop)
    return np.clip(_to_pixels(colours, crop) + 0.5 * detail[..., None], 0, 1)


def _remaining(crop: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The image with the patches that are not kept faded to grey: (height, width, 3) in 0 … 1."""
    grey = crop / 255 @ _LUMINANCE
    faded = np.repeat((0.72 + 0.16 * grey)[..., None], 3, axis=2)
    return np.where(_to_pixels(kept, crop)[..., None], crop / 255, faded)


def _cells(size: int, patches: int) -> np.ndarray:
    """The patch each of `size` pixels along one side belongs to."""
    return np.arange(size) * patches // size


def _to_pixels(values: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Values per patch (H, W, …) as values per pixel (height, width, …) of the crop."""
    rows, columns = _cells(crop.shape[0], values.shape[0]), _cells(crop.shape[1], values.shape[1])
    return values[rows[:, None], columns[None]]


def _patch_means(pixels: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Mean of the pixels (height, width) of each patch: (H, W)."""
    rows, columns = _cells(pixels.shape[0], grid[0]), _cells(pixels.shape[1], grid[1])
    patch = (rows[:, None] * grid[1] + columns[None]).ravel()
    return (np.bincount(patch, pixels.ravel()) / np.bincount(patch)).reshape(grid[:2])


# --------------------------------------------------------------------------------------------------- the words


def _about(inspection: Inspection) -> str:
    patches = math.prod(next(iter(inspection.entropy.values())).shape[1:])
    return (
        "Entropy of each patch's attention in the unpruned model, mean over heads: low where the patch attends to few "
        f"others, log {patches} = {math.log(patches):.2f} nats where it attends evenly to all."
    )


def _count(stages: Stages, stage: int) -> str:
    kept, fused = stages.kept[stage], stages.fused[stage]
    return f"{kept.sum()} of {kept.size}" + (f" + {fused} fused" if fused else " patches")


def _entropy_label(order: float) -> str:
    return "Shannon entropy" if order == 1 else renyi_method(order).label.replace("Rényi", "Rényi entropy", 1)


def _shortened(text: str, longest: int) -> str:
    """The text on one line, its middle left out if it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest // 2] + "…" + text[-(longest - longest // 2 - 1) :]
