"""Loss against cost: the calibrated setting beside random and the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from entropatch.figures.canvas import Page
from entropatch.figures.fonts import families_for, legible
from entropatch.figures.style import ERROR_BARS, INK, LINE, MARGIN, SMALL, dress, looks, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT, _LEFT, _BELOW, _LEGEND = 4.4, 3.3, 0.75, 0.45, 2.3


def trade_off(records: Sequence[Mapping[str, Any]], unit: str, loss: str, *, title: str = "", note: str = "") -> Figure:
    """Loss against cost, one line for each label, with standard errors.

    Args:
        records: mappings with label, cost, loss and standard_error.
        unit: of the costs.
        loss: what the loss is, for the axis, in a few words.
        title, note: a line above, and one below.

    Returns:
        A matplotlib Figure; `entropatch.figures.save_figure` writes it.

    Raises:
        ValueError: no records.
        ImportError: matplotlib is not installed.
    """
    if not records:
        raise ValueError("records must hold at least one setting, but got none.")
    page = Page(MARGIN + _LEFT + _WIDTH + _LEGEND, _HEIGHT + _BELOW + LINE, title, [note] if note else [])
    axes = page.axes(MARGIN + _LEFT, page.top + LINE / 2, _WIDTH, _HEIGHT)
    dress(axes, unit, loss)
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        lines.setdefault(str(record["label"]), []).append(record)
    with style():
        for label, look in looks(lines).items():
            points = sorted(lines[label], key=lambda record: record["cost"])
            axes.errorbar(
                [point["cost"] for point in points],
                [point["loss"] for point in points],
                yerr=[point["standard_error"] for point in points],
                label=legible(label),
                **look,
                **ERROR_BARS,
            )
        if all(record["loss"] > 0 for record in records):  # over one or two powers of ten
            axes.set_yscale("log")
        fonts = {"size": SMALL, "family": families_for("".join(lines))}
        where: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0}
        axes.legend(**where, frameon=False, prop=fonts, labelcolor=INK)
    return page.figure
