"""Accuracy against cost: every point where its record says, the front that of `pareto_front`, no label on another."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.text import Text

from entropatch.figures import accuracy_against, save_figure
from entropatch.figures.accuracy import bars_note
from entropatch.figures.canvas import Page
from entropatch.figures.labels import label_points
from entropatch.records.pareto import pareto_front

RATES = (0.9, 0.3, 0.7, 0.5)


def records(methods=5, spread=1.0, seed=0, rates=RATES):
    random = np.random.default_rng(seed)
    dense = {"label": "Dense", "keep_rate": None, "top1": 88.0, "gflops": 4.6, "images_per_second": 30.0}
    rows = [
        {
            "label": f"Rényi, order {number}",
            "keep_rate": rate,
            "top1": 88 - 9 * (1 - rate) ** 2 + spread * random.normal(),
            "gflops": 1 + 3.6 * rate,
            "images_per_second": 140 / (1 + 3.6 * rate) + random.normal(),
        }
        for number in range(methods)
        for rate in rates
    ]
    return [dense, *rows]


def curves(figure):
    """The points of each entry of the legend, by its text."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    found = {}
    for handle, label in zip(handles, labels, strict=True):
        line = handle[0] if isinstance(handle, tuple) else handle
        found[label.replace("\n", " ")] = np.column_stack([line.get_xdata(), line.get_ydata()])
    return found


@pytest.mark.parametrize("x", ["gflops", "images_per_second"])
def test_points_are_joined_in_order_of_keep_rate(x):
    rows = records()
    drawn = curves(accuracy_against(rows, x))
    assert set(drawn) == {"Pareto front", "Dense", *(f"Rényi, order {i}" for i in range(5))}
    for number in range(5):
        own = sorted((r for r in rows if r["label"] == f"Rényi, order {number}"), key=lambda r: r["keep_rate"])
        assert drawn[f"Rényi, order {number}"].tolist() == [[r[x], r["top1"]] for r in own]
    assert drawn["Dense"].tolist() == [[rows[0][x], 88.0]]


@pytest.mark.parametrize(("x", "sign"), [("gflops", 1), ("images_per_second", -1)])
def test_the_front_is_the_pareto_front_with_more_images_per_second_and_fewer_gflops_better(x, sign):
    rows = records()
    front = pareto_front([sign * row[x] for row in rows], [row["top1"] for row in rows])
    drawn = curves(accuracy_against(rows, x))["Pareto front"]
    assert drawn.tolist() == [[rows[i][x], rows[i]["top1"]] for i in front]
    assert 1 < len(front) < len(rows)


def test_what_was_not_measured_is_left_out():
    rows = records(1)
    rows[1] |= {"gflops": None}
    rows[2] |= {"top1": math.nan}
    del rows[3]["gflops"]
    drawn = curves(accuracy_against(rows, "gflops"))
    assert drawn["Rényi, order 0"].tolist() == [[rows[4]["gflops"], rows[4]["top1"]]]


def test_rates_per_block_and_error_bars():
    rows = [
        {"label": "a", "keep_rate": rates, "top1": 80.0 + i, "gflops": 3.0 + i, "top1_std": std}
        for i, (rates, std) in enumerate([((0.9, 0.8, 0.7), 0.25), ([0.5, 0.5, 0.5], None)])
    ]
    figure = accuracy_against(rows, "gflops")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.9/0.8/0.7", "0.5/0.5/0.5"]
    assert curves(figure)["a"].tolist() == [[4.0, 81.0], [3.0, 80.0]]  # the smaller product first
    (bars,) = (handle[2][0] for handle in figure.axes[0].containers)
    ends = [segment[:, 1].tolist() for segment in bars.get_segments() if len(segment)]
    assert ends == [[79.75, 80.25]]


def test_a_standard_error_is_drawn_rather_than_a_deviation_and_dense_has_its_own():
    rows = [
        {"label": "Dense", "keep_rate": None, "top1": 85.0, "gflops": 5.0, "top1_se": 0.5},
        {"label": "a", "keep_rate": 0.7, "top1": 80.0, "gflops": 3.0, "top1_se": 0.25, "top1_std": 2.0},
        {"label": "b", "keep_rate": 0.7, "top1": 70.0, "gflops": 3.0, "top1_se": None, "top1_std": 1.0},
    ]
    segments = [handle[2][0].get_segments() for handle in accuracy_against(rows).axes[0].containers]
    ends = sorted(segment[:, 1].tolist() for drawn in segments for segment in drawn)
    assert ends == [[69.0, 71.0], [79.75, 80.25], [84.5, 85.5]]
    assert bars_note(rows) == "A bar is one standard error to each side."
    assert bars_note(rows[2:]) == "A bar is one standard deviation."
    assert bars_note([{"top1": 3.0}]) == ""


def test_labels_are_literal_and_colours_and_markers_differ(tmp_path):
    rows = [
        {"label": label, "keep_rate": 0.5, "top1": 80.0 + i, "gflops": 3.0}
        for i, label in enumerate(["_hidden", "a $x^ b", *"cdefghi"])
    ]
    figure = accuracy_against(rows, "gflops", title="$1 _x", note="n " * 200)
    drawn = curves(figure)
    assert len(drawn) == 1 + len(rows)
    handles, _ = figure.axes[0].get_legend_handles_labels()
    looks = [(h[0].get_color(), h[0].get_marker(), h[0].get_linestyle()) for h in handles if isinstance(h, tuple)]
    assert len(set(looks)) == len(rows)
    save_figure(figure, tmp_path / "a.png")
    save_figure(figure, tmp_path / "a.svg")


def test_bad_records_are_refused():
    with pytest.raises(ValueError, match=r"x must be one of gflops, images_per_second, but got 'speed'"):
        accuracy_against(records(), "speed")
    with pytest.raises(ValueError, match="none of 1 does"):
        accuracy_against([{"label": "a", "keep_rate": 1, "top1": 3.0}], "gflops")
    with pytest.raises(ValueError, match="must have a label"):
        accuracy_against([{"keep_rate": 1, "top1": 3.0, "gflops": 1.0}], "gflops")


CASES = {
    "usual": records(),
    "crowded": records(9, spread=0.1),
    "many rates": records(3, rates=tuple(i / 20 for i in range(1, 21))),
    "one": records(1, rates=(0.5,)),
    "dense alone": records(0),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("x", ["gflops", "images_per_second"])
def test_nothing_overlaps_or_leaves_the_page(kind, x):
    figure = accuracy_against(CASES[kind], x, title="A title", note="A note on it.")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [Text.get_window_extent(text) for text in axes.texts]  # without the line that leads to it
    for box in labels:
        assert not overlapping(box, axes.get_window_extent(), inside=True)
    for one, other in itertools.combinations(labels, 2):
        assert not overlapping(one, other)
    # No label lies on a point, of which every one but a neighbour's twin has a label close by.
    points = [row for row in CASES[kind] if row["keep_rate"] is not None]
    middles = axes.transData.transform([(row[x], row["top1"]) for row in points]).reshape(-1, 2)
    for box, (px, py) in itertools.product(labels, middles):
        assert not (box.x0 < px < box.x1 and box.y0 < py < box.y1)
    assert {text.get_text() for text in axes.texts} == {f"{row['keep_rate']:.4g}" for row in points}
    whole = [axes.get_tightbbox(), *(text.get_window_extent() for text in figure.texts)]
    for box in whole:
        assert not overlapping(box, figure.bbox, inside=True)
    for one, other in itertools.combinations(whole, 2):
        assert not overlapping(one, other)


def away(box, point) -> float:
    """From a box to a point."""
    x, y = (min(max(value, low), high) for value, low, high in zip(point, box.min, box.max, strict=True))
    return math.hypot(point[0] - x, point[1] - y)


COINCIDING = [
    {"label": label, "keep_rate": rate, "top1": top1, "gflops": gflops, "images_per_second": 90 / gflops}
    for label, rate, top1, gflops in (
        ("Shannon", 0.7, 80.0, 3.0),
        ("Shannon", 0.5, 79.0, 2.3),
        ("EViT", 0.5, 80.0, 3.0),  # on the first
        ("EViT", 0.3, 79.02, 2.301),  # all but on the second
        ("Random", 0.9, 80.05, 3.05),  # beside the first
        ("Random", 0.3, 70.0, 1.8),
    )
]


@pytest.mark.parametrize("kind", [*CASES, "coinciding"])
def test_no_label_seems_to_be_a_neighbours(kind):
    """The point nearest to a label is one that it belongs to, or a line leads from it to such a point."""
    rows = [row for row in (CASES | {"coinciding": COINCIDING})[kind] if row["keep_rate"] is not None]
    figure = accuracy_against(rows, "gflops") if rows else None
    if figure is None:
        return
    figure.draw_without_rendering()
    axes = figure.axes[0]
    middles = axes.transData.transform([(row["gflops"], row["top1"]) for row in rows])
    for text in axes.texts:
        box = Text.get_window_extent(text)
        nearest = min(away(box, middle) for middle in middles)
        there = [row for row, middle in zip(rows, middles, strict=True) if away(box, middle) < nearest + 0.5]
        shown = set(text.get_text().split(", "))
        at = axes.transData.transform(text.xy)
        own = {f"{row['keep_rate']:.4g}" for row, m in zip(rows, middles, strict=True) if math.dist(at, m) < 6}
        assert shown <= own
        assert text.arrow_patch is not None or shown & {f"{row['keep_rate']:.4g}" for row in there}


def test_points_that_coincide_have_one_label_of_all_their_rates():
    figure = accuracy_against(COINCIDING, "gflops")
    texts = sorted(text.get_text() for text in figure.axes[0].texts)
    assert texts == ["0.3", "0.5, 0.3", "0.7, 0.5", "0.9"]


def overlapping(one, other, inside=False):
    """Whether two boxes share any area; with `inside`, whether the first leaves the second."""
    if inside:
        return one.x0 < other.x0 - 1 or one.y0 < other.y0 - 1 or one.x1 > other.x1 + 1 or one.y1 > other.y1 + 1
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


def test_labels_without_a_place_are_counted_and_twins_share_one():
    axes = Page(2.0, 2.0).axes(0.5, 0.5, 0.3, 0.3)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    assert label_points(axes, [(0.5, 0.5)], ["far too long"]) == 1
    axes = Page(2.0, 2.0).axes(0.5, 0.5, 1.0, 1.0)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    assert label_points(axes, [(0.2, 0.5), (0.3, 0.5), (0.4, 0.5)], ["x", "x", "x"]) == 0
    assert [text.get_text() for text in axes.texts] == ["x"]
