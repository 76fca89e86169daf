"""One image through a whole model: its entropy in every block, and what methods leave of it side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from entropatch.figures.patches import PANEL_NOTE, count_text, entropy_label, range_text
from entropatch.figures.pixels import heat, limits_of_each, remaining
from entropatch.figures.sheet import CELL, STANDING, STRIP, Sheet
from entropatch.figures.style import LINE, MARGIN
from entropatch.methods import method_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from entropatch.look.inspection import Stages

COLUMNS = 6


def entropy_in_blocks(
    crop: np.ndarray,
    entropy: Mapping[float, np.ndarray],
    blocks: Sequence[int] | None = None,
    *,
    scale: str = "panel",
    title: str = "",
    note: str = "",
) -> Figure:
    """Attention entropy of every patch over the image, in every block and for several orders (the paper's Figs. 1, 3).

    Blue is low, red is high.

    Args:
        crop: the pixels the model saw, (height, width, 3), uint8.
        entropy: by order, the maps (blocks, H, W) in nats.
        blocks: 0-based numbers of the blocks; 0, 1, … when None.
        scale: "panel" for colours that span the entropies of each map, which are written below it; "shared" for one
            scale in nats.
        title, note: a line above, and one below.

    Returns:
        A matplotlib Figure; `entropatch.figures.save_figure` writes it.

    Raises:
        ValueError: no order, maps of another number of blocks than `blocks`, or another `scale`.
        ImportError: matplotlib is not installed.
    """
    if not entropy:
        raise ValueError("entropy must hold the maps of at least one order, but got none.")
    depth = len(next(iter(entropy.values())))
    numbers = list(range(depth)) if blocks is None else list(blocks)
    found = [len(maps) for maps in entropy.values()]
    if any(one != len(numbers) for one in found):
        raise ValueError(f"every order must have one map per block, {len(numbers)}, but got {found}.")
    columns = min(COLUMNS, depth)
    lines = math.ceil(depth / columns)  # rows of each order
    patches = math.prod(next(iter(entropy.values())).shape[1:])
    highest = f"log {patches} = {math.log(patches):.2f} nats"
    about = f"Attention entropy of each patch, mean over heads; {highest} where a patch attends evenly to all."
    below = [LINE] * (lines * len(entropy))
    notes = [about, *([PANEL_NOTE] if scale == "panel" else []), *([note] if note else [])]
    sheet = Sheet(below, columns, CELL + STRIP, crop, title, notes, lowest=STANDING)
    sheet.picture(0, -CELL - STRIP, crop / 255)
    sheet.text(MARGIN + CELL / 2, sheet.top - 0.05, "as the model sees it", ha="center", va="bottom")
    limits = limits_of_each([one for maps in entropy.values() for one in maps], scale)
    for place, (order, maps) in enumerate(entropy.items()):
        for number, block in enumerate(numbers):
            row, column = place * lines + number // columns, number % columns
            ends = limits[place * len(numbers) + number]
            caption = f"block {block}" + (f": {range_text(ends)}" if scale == "panel" else "")
            sheet.picture(row, column, heat(crop, maps[number], ends), caption)
        sheet.side_label(place * lines, entropy_label(order))
    sheet.colour_bar(0, len(below), limits[0] if scale == "shared" else None)
    return sheet.figure


def stages_side_by_side(crop: np.ndarray, stages: Mapping[str, Stages], *, title: str = "", note: str = "") -> Figure:
    """What each method leaves of an image after each pruning stage, methods side by side (the paper's Fig. 4).

    Args:
        crop: the pixels the model saw, (height, width, 3), uint8.
        stages: by method name, as `entropatch.look.inspection.pruning_stages` gives them; the same blocks for all
            (`Stages.at`).
        title, note: a line above, and one below.

    Returns:
        A matplotlib Figure; `entropatch.figures.save_figure` writes it.

    Raises:
        ValueError: no method, or methods with different pruning blocks.
        ImportError: matplotlib is not installed.
    """
    if not stages:
        raise ValueError("stages must hold at least one method, but got none.")
    blocks = next(iter(stages.values())).blocks
    if any(one.blocks != blocks for one in stages.values()):
        raise ValueError(
            f"all methods must prune at the same blocks, but got {[one.blocks for one in stages.values()]}."
        )
    notes = [note] if note else []
    sheet = Sheet([LINE] * len(blocks), len(stages), CELL + STRIP, crop, title, notes, lowest=STANDING, bar=False)
    sheet.picture(0, -CELL - STRIP, crop / 255)
    sheet.text(MARGIN + CELL / 2, sheet.top - 0.05, "as the model sees it", ha="center", va="bottom")
    for column, (name, method) in enumerate(stages.items()):
        sheet.head(column, method_label(name))
        for row in range(len(blocks)):
            sheet.picture(row, column, remaining(crop, method.kept[row], method.stands[row]), count_text(method, row))
    for row, block in enumerate(blocks):
        sheet.side_label(row, f"after block {block}")
    return sheet.figure
