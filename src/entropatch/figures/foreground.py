"""How well scores of the patches tell foreground from background, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from entropatch.figures.canvas import Page
from entropatch.figures.fonts import families_for, legible
from entropatch.figures.style import (
    ERROR_BARS,
    INK,
    LETTERS_PER_INCH,
    LINE,
    LINE_STYLES,
    MARGIN,
    SMALL,
    SOFT_INK,
    TEXT,
    dress,
    looks,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 4.6, 2.9  # of the axes, in inches
_LEFT, _BELOW, _LEGEND, _GAP = 0.62, 0.45, 1.75, 0.4  # room beside, under and between them
_COLUMNS = 3  # of several models


def auroc_in_blocks(
    records: Sequence[Mapping[str, Any]],
    pruning_blocks: Sequence[int] = (),
    *,
    proposed: Mapping[str, Sequence[int]] | None = None,
    title: str = "",
    note: str = "",
) -> Figure:
    """AUROC of each score in every block, with the standard errors as bars; 0.5, chance, is a line.

    Args:
        records: as `entropatch.look.foreground.ForegroundCheck` holds them: label, block (None for a score that knows
            no blocks, drawn as a level line), auroc, standard_error (or None).
        pruning_blocks: 0-based blocks to mark.
        proposed: by label, blocks to ring on that score's curve.
        title, note: a line above, and one below.

    Returns:
        A matplotlib Figure; `entropatch.figures.save_figure` writes it.

    Raises:
        ValueError: no record of a block.
        ImportError: matplotlib is not installed.
    """
    return aurocs_of_models({"": records}, pruning_blocks, proposed={"": proposed or {}}, title=title, note=note)


def aurocs_of_models(
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    pruning_blocks: Sequence[int] = (),
    *,
    proposed: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    title: str = "",
    note: str = "",
) -> Figure:
    """`auroc_in_blocks` of several models beside each other, on one scale; each mapping has an entry for a model."""
    columns, step = min(len(records), _COLUMNS), _HEIGHT + _BELOW + LINE
    letters = max((len(legible(record["label"])) for found in records.values() for record in found), default=0)
    legend = max(_LEGEND, 0.7 + letters / LETTERS_PER_INCH)
    width = _LEFT + MARGIN + columns * (_WIDTH + _GAP) - _GAP + legend
    page = Page(width, -(-len(records) // columns) * step, title, [note] if note else [])
    panels: list[Axes] = []
    for number, (name, found) in enumerate(records.items()):
        row, column = divmod(number, columns)
        place = MARGIN + _LEFT + column * (_WIDTH + _GAP), page.top + LINE / 2 + row * step
        axes = page.axes(*place, _WIDTH, _HEIGHT)
        dress(axes, "block", "" if column else "AUROC of the foreground")
        axes.grid(visible=False, axis="x")
        with style():
            _draw(axes, found, pruning_blocks, (proposed or {}).get(name, {}))
            if name:
                inside: dict[str, Any] = {"fontsize": TEXT, "color": INK, "family": families_for(legible(name))}
                axes.text(0.02, 0.98, legible(name), va="top", transform=axes.transAxes, parse_math=False, **inside)
        panels.append(axes)
    ends = [axes.get_ylim() for axes in panels]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    for axes in panels:
        axes.set_ylim(low, high + (0.08 * (high - low) if len(records) > 1 else 0.0))  # room for the names
    with style():
        _add_legend(panels[columns - 1], next(iter(records.values())))
    return page.figure


def _draw(
    axes: Axes,
    records: Sequence[Mapping[str, Any]],
    pruning_blocks: Sequence[int],
    proposed: Mapping[str, Sequence[int]],
) -> None:
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["block"] is not None:
            curves.setdefault(legible(record["label"]), []).append(record)
    if not curves:
        raise ValueError(f"records must hold the AUROC of at least one block, but none of {len(records)} does.")
    for number, block in enumerate(pruning_blocks):
        label = "pruning blocks" if number == 0 else None
        axes.axvspan(block - 0.3, block + 0.3, color="#eceff3", linewidth=0, zorder=0, label=label)
    for number, (label, look) in enumerate(looks(curves).items()):
        _draw_curve(axes, label, curves[label], {**look, "linestyle": LINE_STYLES[number % len(LINE_STYLES)]})
    _ring(axes, curves, {legible(label): blocks for label, blocks in proposed.items()})
    for record in records:
        if record["block"] is None:
            line: dict[str, Any] = {"color": SOFT_INK, "linestyle": "-.", "linewidth": 1.0}
            axes.axhline(record["auroc"], label=legible(record["label"]), **line)
    chance: dict[str, Any] = {"color": INK, "linestyle": ":", "linewidth": 0.9}
    axes.axhline(0.5, label="chance", **chance)
    axes.set_xticks(sorted({record["block"] for curve in curves.values() for record in curve}))


def _ring(axes: Axes, curves: Mapping[str, Sequence[Mapping[str, Any]]], proposed: Mapping[str, Sequence[int]]) -> None:
    """A ring around each proposed block's point, in the colour of its curve."""
    label: str | None = "proposed blocks"
    ring: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "markeredgewidth": 1.4, "linestyle": "none"}
    for number, (name, look) in enumerate(looks(curves).items()):
        points = [(one["block"], one["auroc"]) for one in curves[name] if one["block"] in proposed.get(name, ())]
        if points:
            size = 10 + 2 * (number % 3)  # those of one place around each other
            axes.plot(*zip(*points, strict=True), **ring, markersize=size, color=look["color"], zorder=5, label=label)
            label = None


def _add_legend(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    """Beside the axes: the scores with blocks first, then what else is drawn."""
    names = {legible(record["label"]) for record in records if record["block"] is not None}
    fonts = {"size": SMALL, "family": families_for("".join(sorted(names)))}
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0}
    handles, labels = axes.get_legend_handles_labels()
    first = {label: handle for handle, label in zip(handles, labels, strict=True) if label in names}
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


def _draw_curve(axes: Axes, label: str, curve: Sequence[Mapping[str, Any]], look: Mapping[str, str]) -> None:
    errors = [record["standard_error"] for record in curve]
    axes.errorbar(
        [record["block"] for record in curve],
        [record["auroc"] for record in curve],
        yerr=None if None in errors else errors,
        **look,
        **ERROR_BARS,
        label=label,
    )
