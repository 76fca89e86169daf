"""Heat maps in every block, methods side by side, histograms and entropy against distance: the right numbers, drawn
where they belong, with nothing on top of anything else."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgba  # noqa: E402

from entropatch.figures import (  # noqa: E402
    ENTROPY_COLOURS,
    entropy_against_distance,
    entropy_histograms,
    entropy_in_blocks,
    save_figure,
    stages_side_by_side,
)
from entropatch.look.inspection import Stages  # noqa: E402

CROP = np.full((64, 64, 3), 128, np.uint8)
ORDERS = (1.0, 2.0, math.inf)


def maps(depth=12, orders=ORDERS, grid=(4, 4)):
    random = np.random.default_rng(0)
    return {order: (3 - place + random.random((depth, *grid))).astype(np.float32) for place, order in enumerate(orders)}


def stages(names=("evit", "shannon", "renyi-2"), blocks=(3, 6, 9)):
    random = np.random.default_rng(0)
    shape = (len(blocks), 4, 4)
    return {
        name: Stages(blocks, random.random(shape), random.random(shape) < 0.5, (16, 9, 8, 7), (0,) * len(blocks))
        for name in names
    }


def statistics(depth=12, heads=3, orders=ORDERS, bins=20):
    random = np.random.default_rng(0)
    edges = np.linspace(0, math.log(16), bins + 1)
    counts = np.zeros((len(orders), depth, bins), int)
    counts[..., 5:12] = random.integers(1, 50, (len(orders), depth, 7))
    return edges, counts, random.random((len(orders), depth, heads)), 4 * random.random((depth, heads))


def drawn(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def written(figure):
    return [text.get_text().replace("\n", " ") for text in figure.texts]


def test_every_block_of_every_order_has_its_map_on_one_scale():
    entropy = maps()
    figure = entropy_in_blocks(CROP, entropy, scale="shared", title="cat", note="a model")
    pictures = drawn(figure)
    assert len(pictures) == 1 + 3 * 12
    low, high = np.percentile(np.stack(list(entropy.values())), (1, 99))
    colours = matplotlib.colormaps[ENTROPY_COLOURS]
    for place, (order, block) in enumerate(itertools.product(ORDERS, range(12)), 1):
        expected = colours((entropy[order][block] - low) / (high - low))[..., :3]
        assert pictures[place].reshape(4, 16, 4, 16, 3).mean((1, 3)) == pytest.approx(expected, abs=1e-6)
    boxes = [axes.get_position() for axes in figure.axes if axes.images]
    captions = [text for text in figure.texts if text.get_text().startswith("block")]
    for place, caption in enumerate(captions, 1):
        x, y = caption.get_position()
        assert caption.get_text() == f"block {(place - 1) % 12}"
        assert x == pytest.approx((boxes[place].x0 + boxes[place].x1) / 2)
        assert 0 < (boxes[place].y0 - y) * figure.get_figheight() < 0.1  # inches below its picture
    # In reading order, six to a row.
    assert [(-round(box.y0, 6), round(box.x0, 6)) for box in boxes[1:]] == sorted(
        (-round(box.y0, 6), round(box.x0, 6)) for box in boxes[1:]
    )
    bar = next(axes for axes in figure.axes if not axes.images)
    assert bar.get_ylim() == pytest.approx((low, high))
    assert bar.get_ylabel() == "entropy (nats)"
    assert {"cat", "a model", "block 0", "block 11", "Shannon entropy", "Rényi entropy, order ∞"} <= set(
        written(figure)
    )
    assert written(figure).count("block 7") == 3
    assert "block 9" in written(entropy_in_blocks(CROP, maps(2), blocks=(4, 9), scale="shared"))


def test_every_map_has_its_own_scale_unless_told_otherwise():
    entropy = maps()
    figure = entropy_in_blocks(CROP, entropy)
    colours = matplotlib.colormaps[ENTROPY_COLOURS]
    ends = {}
    for place, (order, block) in enumerate(itertools.product(ORDERS, range(12)), 1):
        low, high = ends[order, block] = np.percentile(entropy[order][block], (1, 99))
        expected = colours((entropy[order][block] - low) / (high - low))[..., :3]
        assert drawn(figure)[place].reshape(4, 16, 4, 16, 3).mean((1, 3)) == pytest.approx(expected, abs=1e-6)
    captions = [text for text in written(figure) if text.startswith("block")]
    assert captions == [f"block {block}: {low:.2f}–{high:.2f}" for (_, block), (low, high) in ends.items()]


def test_methods_stand_side_by_side_with_what_each_stage_left():
    found = stages()
    figure = stages_side_by_side(CROP, found, title="cat", note="keep rate 0.7")
    pictures = drawn(figure)
    assert len(pictures) == 1 + 3 * 3
    for place, (method, row) in enumerate(itertools.product(found.values(), range(3)), 1):
        kept = np.kron(method.kept[row], np.ones((16, 16), bool))
        assert np.array_equal(pictures[place][kept], CROP[kept] / 255)
        assert (pictures[place][~kept] != CROP[~kept] / 255).mean() > 0.99
    places = [axes.get_position() for axes in figure.axes if axes.images][1:]
    columns = [{round(box.x0, 6) for box in places[i : i + 3]} for i in (0, 3, 6)]
    assert [len(column) for column in columns] == [1, 1, 1]  # a method is a column
    counts = [f"{method.kept[row].sum()} of 16 patches" for method in found.values() for row in range(3)]
    assert {"EViT", "Shannon", "Rényi, order 2", "after block 3", "after block 9", *counts} <= set(written(figure))


def test_histograms_are_the_counts_as_shares():
    edges, counts, *_ = statistics()
    figure = entropy_histograms(edges, counts, ORDERS)
    assert len(figure.axes) == 12
    for block, axes in enumerate(figure.axes):
        assert len(axes.patches) == 3
        for order, stairs in enumerate(axes.patches):
            values, found, _ = stairs.get_data()
            assert found is edges
            assert values == pytest.approx(100 * counts[order, block] / counts[order, block].sum())
        assert axes.get_xlim() == pytest.approx((edges[4], edges[13]))  # what is filled, and a bin beside it
        assert axes.get_ylim() == figure.axes[0].get_ylim()
    assert {"block 0", "block 11", "entropy (nats)", "share of the patches (%)"} <= set(written(figure))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Shannon entropy", "Rényi entropy, order 2", "Rényi entropy, order ∞"]
    looks = {(patch.get_edgecolor(), patch.get_linestyle()) for patch in figure.axes[0].patches}
    assert len(looks) == 3
    assert to_rgba("#0072B2") in {look[0] for look in looks}


def test_a_dot_per_head_and_the_correlation_beside_it():
    _, _, entropy, distance = statistics()
    figure = entropy_against_distance(entropy, distance, ORDERS, [0.5, -0.25, math.nan])
    panels = [axes for axes in figure.axes if axes.collections and axes.get_xlabel()]
    assert len(panels) == 3
    for place, axes in enumerate(panels):
        (dots,) = axes.collections
        assert np.asarray(dots.get_offsets()).tolist() == [
            [distance[block, head], entropy[place, block, head]] for block in range(12) for head in range(3)
        ]
        assert dots.get_array().tolist() == [block for block in range(12) for _ in range(3)]
        assert axes.get_xlabel() == "attention distance (patches)"
        assert axes.get_ylim() == panels[0].get_ylim()
    assert panels[0].get_ylabel() == "attention entropy (nats)"
    assert [text for text in written(figure) if text.startswith("Spearman")] == [
        "Spearman's rank correlation +0.50",
        "Spearman's rank correlation -0.25",
        "Spearman's rank correlation +nan",
    ]


def test_arrays_that_do_not_fit_are_refused():
    edges, counts, entropy, distance = statistics()
    with pytest.raises(ValueError, match="at least one order"):
        entropy_in_blocks(CROP, {})
    with pytest.raises(ValueError, match=r"one map per block, 2, but got \[12, 12, 12\]"):
        entropy_in_blocks(CROP, maps(), blocks=(1, 2))
    with pytest.raises(ValueError, match="at least one method"):
        stages_side_by_side(CROP, {})
    with pytest.raises(ValueError, match="same blocks"):
        stages_side_by_side(CROP, stages() | stages(("random",), (1, 2, 3)))
    with pytest.raises(ValueError, match=r"counts must be \(orders, blocks, bins\) = \(3, 12, 19\)"):
        entropy_histograms(edges[1:], counts, ORDERS)
    with pytest.raises(ValueError, match="one correlation per order"):
        entropy_against_distance(entropy, distance, ORDERS, [0.1])


def chart(depth, orders, **more):
    edges, counts, entropy, distance = statistics(depth, orders=orders)
    return {
        "histograms": entropy_histograms(edges, counts, orders, **more),
        "distance": entropy_against_distance(entropy, distance, orders, [0.1] * len(orders), **more),
        "blocks": entropy_in_blocks(CROP, maps(depth, orders), **more),
    }


FINE = (0.123456789, 0.5, 1.0, 2.0, 3.456789e-05, math.inf)
CASES = {
    **{f"{kind}, usual": (kind, 12, ORDERS, {"title": "cat", "note": "a note on it"}) for kind in chart(2, (1.0,))},
    **{f"{kind}, one block": (kind, 1, (2.0,), {}) for kind in chart(2, (1.0,))},
    **{
        f"{kind}, many orders": (kind, 6, FINE, {"title": "word " * 40, "note": "word " * 80})
        for kind in chart(2, (1.0,))
    },
    "histograms, deep": ("histograms", 26, (1.0, 2.0), {"title": "deep"}),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_overlaps_or_leaves_the_page(case):
    kind, depth, orders, more = CASES[case]
    nothing_overlaps(chart(depth, orders, **more)[kind])


def test_methods_side_by_side_do_not_overlap():
    nothing_overlaps(
        stages_side_by_side(CROP, stages(("random", "evit", "evit-drop", "renyi-0.123457")), title="x" * 90)
    )


def nothing_overlaps(figure):
    figure.draw_without_rendering()
    page = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.texts]
    boxes += [("legend", legend.get_window_extent()) for legend in figure.legends]
    boxes += [(f"axes {number}", axes.get_tightbbox()) for number, axes in enumerate(figure.axes)]
    for what, box in boxes:
        assert box.x0 >= page.x0 - 0.5, what
        assert box.y0 >= page.y0 - 0.5, what
        assert box.x1 <= page.x1 + 0.5, what
        assert box.y1 <= page.y1 + 0.5, what
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        apart = a.x1 <= b.x0 + 0.5 or b.x1 <= a.x0 + 0.5 or a.y1 <= b.y0 + 0.5 or b.y1 <= a.y0 + 0.5
        assert apart, f"{one!r} and {other!r} overlap"


def test_files_are_reproducible(tmp_path):
    edges, counts, entropy, distance = statistics()
    for name in "ab":
        save_figure(entropy_histograms(edges, counts, ORDERS), tmp_path / f"h{name}.svg")
        save_figure(entropy_against_distance(entropy, distance, ORDERS, [0.1] * 3), tmp_path / f"d{name}.svg")
    assert (tmp_path / "ha.svg").read_bytes() == (tmp_path / "hb.svg").read_bytes()
    assert (tmp_path / "da.svg").read_bytes() == (tmp_path / "db.svg").read_bytes()
