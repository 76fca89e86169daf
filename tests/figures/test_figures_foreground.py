"""AUROC per block: the numbers of the records, beside chance, the pruning blocks and a score without blocks."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from entropatch.figures import auroc_in_blocks, aurocs_of_models, save_figure

RECORDS = [
    {"label": label, "block": block, "auroc": 0.4 + 0.1 * block + 0.02 * place, "standard_error": 0.01 * (block + 1)}
    for place, label in enumerate(["Shannon", "Rényi, order 2", "EViT"])
    for block in range(4)
] + [{"label": "pixel deviation", "block": None, "auroc": 0.46, "standard_error": 0.03}]


def test_every_score_has_its_curve_and_errors(tmp_path):
    figure = auroc_in_blocks(RECORDS, (1, 3), title="T", note="N")
    (axes,) = figure.axes
    curves = {bars.get_label(): bars for bars in axes.containers}
    for label in ("Shannon", "Rényi, order 2", "EViT"):
        mine = [record for record in RECORDS if record["label"] == label]
        line, _, (bars,) = curves[label]
        assert line.get_xydata().tolist() == [[one["block"], one["auroc"]] for one in mine]
        halves = [(segment[1, 1] - segment[0, 1]) / 2 for segment in bars.get_segments()]
        assert halves == pytest.approx([one["standard_error"] for one in mine])
    level = {line.get_label(): line.get_ydata()[0] for line in axes.lines}
    assert level["pixel deviation"] == 0.46
    assert level["chance"] == 0.5
    bands = [(patch.get_x() + patch.get_width() / 2) for patch in axes.patches]
    assert bands == pytest.approx([1, 3])
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["Shannon", "Rényi, order 2", "EViT", "pruning blocks", "pixel deviation", "chance"]
    save_figure(figure, tmp_path / "a.png")


def test_proposed_blocks_are_ringed_on_their_own_curve():
    figure = auroc_in_blocks(RECORDS, (1,), proposed={"Shannon": (2, 3), "EViT": (0,)})
    (axes,) = figure.axes
    rings = [line.get_xydata().tolist() for line in axes.lines if line.get_markerfacecolor() == "none"]
    level = {(one["label"], one["block"]): one["auroc"] for one in RECORDS}
    assert rings == [[[block, level["Shannon", block]] for block in (2, 3)], [[0, level["EViT", 0]]]]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[3:] == ["pruning blocks", "proposed blocks", "pixel deviation", "chance"]


def test_one_image_has_no_errors_and_no_block_no_picture():
    alone = [record | {"standard_error": None} for record in RECORDS]
    assert len(auroc_in_blocks(alone).axes[0].containers) == 3
    with pytest.raises(ValueError, match="at least one block, but none of 1 does"):
        auroc_in_blocks(RECORDS[-1:])


def test_several_models_stand_beside_each_other_on_one_scale():
    lower = [record | {"auroc": record["auroc"] - 0.3} for record in RECORDS]
    figure = aurocs_of_models({"dense": RECORDS, "pruned": lower, "c": RECORDS, "d": RECORDS}, (1,))
    assert len(figure.axes) == 4
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["dense", "pruned", "c", "d"]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    low, high = figure.axes[0].get_ylim()
    assert low < 0.1 < 0.74 < high
    levels = [axes.containers[0][0].get_ydata()[0] for axes in figure.axes[:2]]
    assert levels == pytest.approx([0.4, 0.1])
    left, second, _, fourth = (axes.get_position() for axes in figure.axes)
    assert (second.y0, second.x0 > left.x1) == (left.y0, True)
    assert (fourth.x0, fourth.y1 < left.y0) == (left.x0, True)
    assert [axes.get_legend() is not None for axes in figure.axes] == [False, False, True, False]
    with pytest.raises(ValueError, match="at least one block"):
        aurocs_of_models({"dense": RECORDS, "pruned": RECORDS[-1:]})
