"""Accuracy against cost or speed, one curve per method."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from entropatch.figures.canvas import Page
from entropatch.figures.fonts import families_for, legible
from entropatch.figures.labels import label_points
from entropatch.figures.style import ERROR_BARS, INK, LINE, MARGIN, SMALL, dress, looks, style
from entropatch.records.pareto import pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What each axis says, and whether less of it is better.
X_AXES = {
    "gflops": ("multiply-adds per image (GFLOPs, 10⁹)", True),
    "images_per_second": ("throughput (images/s)", False),
}
_WIDTH, _HEIGHT = 4.4, 3.3  # of the axes, in inches
_LEFT, _BELOW, _LEGEND = 0.62, 0.45, 1.75  # room beside and under them
_FRONT = "#c9c9c9"

Record = Mapping[str, Any]


def accuracy_against(records: Sequence[Record], x: str = "gflops", *, title: str = "", note: str = "") -> Figure:
    """Top-1 accuracy against GFLOPs or images/s, with the Pareto front.

    Points of one label have one colour and marker and are joined in order of keep rate, which is written beside them;
    of points that lie together and have the same keep rate, beside one.
    A record without keep rate is a dense model, unless it says otherwise: a star, with a dotted line at its accuracy.
    The front joins the points that no other beats in both, dense ones included.

    Args:
        records: mappings with label, keep_rate (a number, one per block, or None for dense), top1 in percent, gflops
            (10⁹ multiply-adds per image) or images_per_second, and optionally "dense": False for a setting that takes
            no keep rate, and top1_se, or else top1_std, drawn as error bars. One whose top1 or `x` is missing, None or
            not finite was not measured and is left out.
        x: "gflops" or "images_per_second".
        title, note: a line above, and one below.

    Returns:
        A matplotlib Figure; `entropatch.figures.save_figure` writes it.

    Raises:
        ValueError: another `x`; a record without label; no record has both numbers.
        ImportError: matplotlib is not installed.
    """
    if x not in X_AXES:
        raise ValueError(f"x must be one of {', '.join(X_AXES)}, but got {x!r}.")
    measured = [record for record in records if _is_number(record.get(x)) and _is_number(record.get("top1"))]
    if not measured:
        raise ValueError(f"at least one record must hold top1 and {x}, but none of {len(records)} does.")
    for record in measured:
        if not isinstance(record.get("label"), str):
            raise ValueError(f"every record must have a label, but got {dict(record)!r}.")
    page = Page(MARGIN + _LEFT + _WIDTH + _LEGEND, _HEIGHT + _BELOW + LINE, title, [note] if note else [])
    axes = page.axes(MARGIN + _LEFT, page.top + LINE / 2, _WIDTH, _HEIGHT)
    what, less_is_better = X_AXES[x]
    dress(axes, what, "top-1 accuracy (%)")
    axes.margins(0.09)
    with style():
        front = _draw_front(axes, measured, x, less_is_better)
        grouped = _curves(measured)
        curves = [_draw_curve(axes, grouped[label], x, look) for label, look in looks(grouped).items()]
        _draw_dense(axes, [record for record in measured if _is_dense(record)], x)
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(1.02, 1.0),
            borderaxespad=0,
            frameon=False,
            prop={"size": SMALL, "family": families_for("".join(str(record["label"]) for record in measured))},
            labelcolor=INK,
            handlelength=2.2,
            labelspacing=0.7,
        )
    axes.autoscale_view()
    pruned = [record for record in measured if record.get("keep_rate") is not None]
    points = [(record[x], record["top1"]) for record in pruned]
    label_points(axes, points, [rate_text(record["keep_rate"]) for record in pruned], [front, *curves])
    return page.figure


def bars_note(records: Sequence[Record]) -> str:
    """What the error bars of these records are, in a sentence; empty for none."""
    if any(_is_number(record.get("top1_se")) for record in records):
        return "A bar is one standard error to each side."
    return "A bar is one standard deviation." if any(_is_number(record.get("top1_std")) for record in records) else ""


def _error(record: Record) -> float:
    """Of the bar; NaN for none."""
    return next((record[key] for key in ("top1_se", "top1_std") if _is_number(record.get(key))), math.nan)


def rate_text(keep_rate: Any) -> str:
    """A keep rate as a figure shows it: "0.7", or "0.9/0.7/0.5" for one per block."""
    rates = keep_rate if isinstance(keep_rate, (tuple, list)) else (keep_rate,)
    return "/".join(f"{rate:.4g}" for rate in rates)


def _curves(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The pruned points of each label in order of keep rate; labels in the order they first appear."""
    curves: dict[str, list[Record]] = {}
    for record in records:
        if not _is_dense(record):
            curves.setdefault(record["label"], []).append(record)
    return {label: sorted(curve, key=lambda record: _overall(record["keep_rate"])) for label, curve in curves.items()}


def _overall(keep_rate: Any) -> float:
    """The share of the patches that is left in the end."""
    return math.prod(keep_rate) if isinstance(keep_rate, (tuple, list)) else float(keep_rate or 0)


def _is_dense(record: Record) -> bool:
    return bool(record.get("dense", record.get("keep_rate") is None))


def _draw_front(axes: Axes, records: Sequence[Record], x: str, less_is_better: bool) -> np.ndarray:
    """A broad grey line under the points of the front; its points (n, 2)."""
    costs = [record[x] if less_is_better else -record[x] for record in records]
    front = np.array(
        [(records[i][x], records[i]["top1"]) for i in pareto_front(costs, [record["top1"] for record in records])]
    )
    line: dict[str, Any] = {"color": _FRONT, "linewidth": 5, "solid_capstyle": "round", "marker": "o", "markersize": 9}
    axes.plot(*front.T, zorder=1, label="Pareto front", **line)
    return front


def _draw_curve(axes: Axes, curve: Sequence[Record], x: str, look: Mapping[str, str]) -> np.ndarray:
    points = np.array([(record[x], record["top1"]) for record in curve], float)
    errors = [_error(record) for record in curve]
    axes.errorbar(
        *points.T,
        yerr=None if all(map(math.isnan, errors)) else errors,
        **look,
        **ERROR_BARS,
        zorder=3,
        label=textwrap.fill(_literal(curve[0]["label"]), 24),
    )
    return points


def _draw_dense(axes: Axes, records: Sequence[Record], x: str) -> None:
    for record in records:
        line: dict[str, Any] = {"color": INK, "linestyle": ":", "linewidth": 0.8}
        axes.axhline(record["top1"], zorder=2, **line)
        label = textwrap.fill(_literal(record["label"]), 24)
        error = None if math.isnan(_error(record)) else [_error(record)]
        bar = {"elinewidth": ERROR_BARS["elinewidth"], "capsize": ERROR_BARS["capsize"]}
        axes.errorbar(
            [record[x]], [record["top1"]], error, marker="*", markersize=9, zorder=4, label=label, **line, **bar
        )


def _literal(label: str) -> str:
    """A label of a legend: matplotlib takes a $ for a formula and hides what begins with an underscore."""
    text = legible(" ".join(label.split())).replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False
