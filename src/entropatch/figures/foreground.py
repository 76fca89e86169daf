"""How well scores of the patches tell foreground from background, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from entropatch.figures.canvas import Page
from entropatch.figures.fonts import families_for, legible
from entropatch.figures.style import COLOURS, ERROR_BARS, INK, LINE, MARGIN, MARKERS, SMALL, SOFT_INK, dress, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 4.6, 2.9  # of the axes, in inches
_LEFT, _BELOW, _LEGEND = 0.62, 0.45, 1.75  # room beside and under them


def auroc_in_blocks(
    records: Sequence[Mapping[str, Any]], pruning_blocks: Sequence[int] = (), *, title: str = "", note: str = ""
) -> Figure:
    """AUROC of each score in every block, with the standard errors as bars; 0.5, chance, is a line.

    Args:
        records: as `entropatch.look.foreground.ForegroundCheck` holds them: label, block (None for a score that knows
            no blocks, drawn as a level line), auroc, standard_error (or None).
        pruning_blocks: 0-based blocks to mark.
        title, note: a line above, and one below.

    Returns:
        A matplotlib Figure; `entropatch.figures.save_figure` writes it.

    Raises:
        ValueError: no record of a block.
        ImportError: matplotlib is not installed.
    """
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["block"] is not None:
            curves.setdefault(legible(record["label"]), []).append(record)
    if not curves:
        raise ValueError(f"records must hold the AUROC of at least one block, but none of {len(records)} does.")
    page = Page(MARGIN + _LEFT + _WIDTH + _LEGEND, _HEIGHT + _BELOW + LINE, title, [note] if note else [])
    axes = page.axes(MARGIN + _LEFT, page.top + LINE / 2, _WIDTH, _HEIGHT)
    dress(axes, "block", "AUROC of the foreground")
    axes.grid(visible=False, axis="x")
    with style():
        for number, block in enumerate(pruning_blocks):
            label = "pruning blocks" if number == 0 else None
            axes.axvspan(block - 0.3, block + 0.3, color="#eceff3", linewidth=0, zorder=0, label=label)
        for number, (label, curve) in enumerate(curves.items()):
            _draw_curve(axes, label, curve, number)
        for record in records:
            if record["block"] is None:
                line: dict[str, Any] = {"color": SOFT_INK, "linestyle": "-.", "linewidth": 1.0}
                axes.axhline(record["auroc"], label=legible(record["label"]), **line)
        chance: dict[str, Any] = {"color": INK, "linestyle": ":", "linewidth": 0.9}
        axes.axhline(0.5, label="chance", **chance)
        axes.set_xticks(sorted({record["block"] for curve in curves.values() for record in curve}))
        fonts = {"size": SMALL, "family": families_for("".join(curves))}
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0}
        handles, labels = axes.get_legend_handles_labels()
        first = {label: handle for handle, label in zip(handles, labels, strict=True) if label in curves}
        shown = first | dict(zip(labels, handles, strict=True))
        axes.legend(
            shown.values(),
            shown.keys(),
            frameon=False,
            prop=fonts,
            labelcolor=INK,
            handlelength=2.4,
            labelspacing=0.7,
            **place,
        )
    return page.figure


def _draw_curve(axes: Axes, label: str, curve: Sequence[Mapping[str, Any]], number: int) -> None:
    errors = [record["standard_error"] for record in curve]
    axes.errorbar(
        [record["block"] for record in curve],
        [record["auroc"] for record in curve],
        yerr=None if None in errors else errors,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle=("-", "--", "-.", ":")[number % 4],
        **ERROR_BARS,
        label=label,
    )
