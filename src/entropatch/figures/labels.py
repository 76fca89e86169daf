"""Small labels beside the points of a chart: none lies on another or on a point, none seems to be a neighbour's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from entropatch.figures.style import INK, SMALL, SOFT_INK, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Where a label may lie: its nearest point so many points (1/72 inch) from the marker's middle, in these directions.
_DISTANCES = (5.0, 9.0, 14.0, 20.0, 27.0)
_DIRECTIONS = tuple(math.radians(angle) for angle in (90, 270, 45, 135, 315, 225, 0, 180, 67, 113, 247, 293))
_MARKER = 4.5  # half the width of a marker and its margin
_LEADER = 10.0  # from this distance on a thin line leads to the label
_TOGETHER = 16.0  # points this close to each other share a label of the same text
_SAME = 2.0  # points this close are one to the eye, and have one label of all their texts
_NEAR, _AMBIGUOUS = 2.0, 8.0  # how much nearer a label must be to its own point, and the harm if it is not
_MARGIN = np.array([-2.0, -0.5, 2.0, 0.5])  # around a label


def label_points(
    axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str], lines: Sequence[np.ndarray] = ()
) -> int:
    """Write each label beside its point; the limits of the axes must not change afterwards.

    The nearest free place is taken, preferably one that no line crosses and no other point is nearer to; where there is
    none, a thin line leads from the label to its point. Points that coincide have one label of all their texts. A label
    without a free place is left out, and one that would repeat that of a point close by stands for both.

    Args:
        axes: where.
        points: in data coordinates.
        labels: one per point.
        lines: polylines (n, 2) in data coordinates.

    Returns:
        How many labels were left out for want of a place.
    """
    figure: Any = axes.figure
    to_points = 72 / figure.dpi
    renderer = figure.canvas.get_renderer()
    frame = np.array(axes.get_window_extent(renderer).get_points()) * to_points
    places = axes.transData.transform(np.asarray(points, float).reshape(-1, 2)) * to_points
    inked = _dense_points([axes.transData.transform(line) * to_points for line in lines])
    taken = np.concatenate([places - _MARKER, places + _MARKER], axis=1)
    left_out = 0
    labelled: list[tuple[np.ndarray, str]] = []
    for place, label in _coinciding(places, labels):
        if any(label == other and np.hypot(*(place - there)) < _TOGETHER for there, other in labelled):
            continue
        size = _size(axes, label, renderer) * to_points
        others = places[np.hypot(*(places - place).T) >= _SAME]
        box = _best_box(place, size, taken, inked, frame, others)
        if box is None:
            left_out += 1
            continue
        labelled.append((place, label))
        taken = np.concatenate([taken, box[None] + _MARGIN])
        middle = (box[:2] + box[2:]) / 2
        nearest = np.clip(place, box[:2], box[2:])
        leader = np.hypot(*(nearest - place)) >= _LEADER or _is_ambiguous(box, place, others)
        with style():
            axes.annotate(
                label,
                xy=tuple(axes.transData.inverted().transform(place / to_points)),
                xytext=tuple(middle - place),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=SMALL,
                color=SOFT_INK,
                parse_math=False,
                zorder=6,
                arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.35, "shrinkA": 1, "shrinkB": 3}
                if leader
                else None,
            )
    return left_out


def _best_box(
    place: np.ndarray,
    size: np.ndarray,
    taken: np.ndarray,
    inked: np.ndarray,
    frame: np.ndarray,
    others: np.ndarray,
) -> np.ndarray | None:
    """The box (x0, y0, x1, y1) in which a label of that size does least harm; None if every one overlaps something."""
    best, least = None, math.inf
    for ring, distance in enumerate(_DISTANCES):
        for rank, angle in enumerate(_DIRECTIONS):
            way = np.array([math.cos(angle), math.sin(angle)])
            middle = place + way * distance + np.sign(np.round(way, 6)) * size / 2
            box = np.concatenate([middle - size / 2, middle + size / 2])
            if (box[:2] < frame[0]).any() or (box[2:] > frame[1]).any() or _overlaps(box, taken).any():
                continue
            crossed = ((inked > box[:2]) & (inked < box[2:])).all(1).sum() if len(inked) else 0
            harm = 2.0 * crossed + 3.0 * ring + 0.1 * rank + _AMBIGUOUS * _is_ambiguous(box, place, others)
            if harm < least:
                best, least = box, harm
    return best


def _coinciding(places: np.ndarray, labels: Sequence[str]) -> list[tuple[np.ndarray, str]]:
    """The places, each once, with the different labels of all points there."""
    found: list[tuple[np.ndarray, list[str]]] = []
    for place, label in zip(places, labels, strict=True):
        texts = next((texts for there, texts in found if np.hypot(*(place - there)) < _SAME), None)
        if texts is None:
            found.append((place, [label]))
        elif label not in texts:
            texts.append(label)
    return [(place, ", ".join(texts)) for place, texts in found]


def _is_ambiguous(box: np.ndarray, place: np.ndarray, others: np.ndarray) -> bool:
    """Whether a label in the box seems to be another point's: one that is as near to it as its own, or nearly."""
    points = np.concatenate([place[None], others])
    away = np.hypot(*(points - np.clip(points, box[:2], box[2:])).T)
    return bool((away[1:] < away[0] + _NEAR).any())


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.all((box[:2] < others[:, 2:]) & (others[:, :2] < box[2:]), axis=1)


def _dense_points(lines: Sequence[np.ndarray]) -> np.ndarray:
    """Points along the lines, two apart: (many, 2)."""
    found = [np.zeros((0, 2))]
    for line in lines:
        for start, end in pairwise(line):
            steps = int(np.hypot(*(end - start)) / 2) + 1
            found.append(start + (end - start) * np.linspace(0, 1, steps + 1)[:, None])
    return np.concatenate(found)


def _size(axes: Axes, label: str, renderer: Any) -> np.ndarray:
    """Width and height of a label in pixels."""
    with style():
        text = axes.text(0, 0, label, fontsize=SMALL, parse_math=False)
    box = text.get_window_extent(renderer)
    text.remove()
    return np.array([box.width, box.height])
