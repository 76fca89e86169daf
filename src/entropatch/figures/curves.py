"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from entropatch.figures.fonts import families_for
from entropatch.figures.style import COLOURS, INK, LINE_STYLES, SMALL, TITLE, dress, new_figure, shortened, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Beside the colour, for print.
_PANELS = {"loss": "training loss", "top1": "top-1 accuracy (%)", "miou": "mIoU (%)"}


def training_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str = "", accuracy: str = "top1"
) -> Figure:
    """Training loss and accuracy after each epoch, one line per run.

    Args:
        histories: by the run's name, one record per epoch with the keys epoch, loss and `accuracy` (percent), as
            epochs.jsonl of a run holds them.
        accuracy: "top1", or "miou" of maps.
        title: a line above, taken literally.

    Raises:
        ValueError: no run has finished an epoch.
        ImportError: matplotlib is not installed.
    """
    shown = {name: list(history) for name, history in histories.items() if history}
    if not shown:
        raise ValueError("histories must hold a run with at least one finished epoch, but got none.")
    figure = new_figure(7.2, 2.9)
    with style():
        figure.subplots_adjust(left=0.095, right=0.985, top=0.87 if title else 0.96, bottom=0.16, wspace=0.22)
        if title:
            shown_title = shortened(title, 90)
            how = {"fontfamily": families_for(shown_title), "fontsize": TITLE, "weight": "bold", "parse_math": False}
            figure.suptitle(shown_title, x=0.015, ha="left", **how)
        panels = figure.subplots(1, 2, squeeze=False)[0]
        for axes, key in zip(panels, ("loss", accuracy), strict=True):
            _draw(axes, shown, key, _PANELS[key])
        if len(shown) > 1:
            fonts = {"size": SMALL, "family": families_for("".join(shown))}
            panels[-1].legend(prop=fonts, frameon=False, labelcolor=INK)
    return figure


def _draw(axes: Axes, histories: Mapping[str, Sequence[Mapping[str, Any]]], key: str, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for number, (name, history) in enumerate(histories.items()):
        axes.plot(
            [record["epoch"] for record in history],
            [record[key] for record in history],
            color=COLOURS[number % len(COLOURS)],
            linestyle=LINE_STYLES[number % len(LINE_STYLES)],
            # A single epoch, or few, would hardly show as a line.
            marker="o" if len(history) <= 30 else None,
            markersize=3,
            linewidth=1.4,
            label=shortened(name, 24).replace("_", "\u200b_"),  # a label that begins with _ is left out of the legend
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    dress(axes, "epoch", label)
