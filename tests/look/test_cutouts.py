"""Cut-outs on photographs with exact masks, the rank correlation, and the script that measures with both."""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("scipy")

from entropatch.data import DataError
from entropatch.data.base import ImageArray
from entropatch.data.cutouts import CutOutsOnPhotographs, find_cutouts, read_cutout
from entropatch.data.masks import MaskError
from entropatch.look.agreement import agreement

EVIDENCE = Path(__file__).parents[2] / "benchmarks/evidence"


def stamp(path: Path, size=(90, 60), disc: bool = True, colour=(250, 10, 10)) -> Path:
    """A red ellipse, or bar, on a transparent ground of another colour, with a margin around it."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2 + 0.5) / (width / 2)) ** 2 + ((y - height / 2 + 0.5) / (height / 2)) ** 2 <= 1
    picture = np.zeros((height + 20, width + 30, 4), np.uint8)
    picture[..., :3] = (0, 0, 255)
    picture[7 : 7 + height, 9 : 9 + width, 3] = 255 * (inside if disc else True)
    picture[7 : 7 + height, 9 : 9 + width, :3] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def photographs(count: int, size: int = 40) -> ImageArray:
    """Grey pictures, each of its own level."""
    levels = np.arange(10, 10 + count, dtype=np.uint8)
    return ImageArray(np.broadcast_to(levels[:, None, None], (count, size, size + 10)).copy(), np.zeros(count, int))


# ---------------------------------------------------------------------------------------------------- the pictures


@pytest.mark.parametrize(("side", "canvas"), [(98, 98), (98, 112)])
def test_the_mask_is_where_the_object_is_and_takes_its_share(tmp_path, side, canvas):
    files = [stamp(tmp_path / f"{i}.png") for i in range(4)]
    found, refused = find_cutouts(files, side, [0.1, 0.25, 0.4])
    assert (len(found), refused) == (4, [])
    pictures = CutOutsOnPhotographs(found, photographs(6), side, canvas, seed=1)
    edge = (canvas - side) // 2
    for i, share in itertools.product(range(4), (0.1, 0.25, 0.4)):
        picture, mask = pictures.pasted(i, share)
        pixels = np.asarray(picture).astype(int)
        assert pixels.shape == (canvas, canvas, 3)
        assert mask.sum() / side**2 == pytest.approx(share, rel=0.05)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert min(rows[0], columns[0]) >= edge
        assert max(rows[-1], columns[-1]) < edge + side
        red = pixels[..., 0] - pixels[..., 2] > 115  # more than half of 240
        assert (red == mask).mean() > 0.999
        assert pixels[..., 2].max() < 40  # none of the blue behind the cut-out
        grey = pictures.backgrounds[i] + 10
        far = ~np.pad(mask, 4)[None].repeat(9, 0)
        away = np.all([np.roll(far[0], (dy, dx), (0, 1)) for dy in range(-4, 5) for dx in range(-4, 5)], axis=0)
        assert (pixels[away[4:-4, 4:-4]] == grey).all()


def test_an_object_keeps_its_photograph_and_its_place_at_every_size(tmp_path):
    found, _ = find_cutouts([stamp(tmp_path / f"{i}.png") for i in range(5)], 98, [0.3])
    pictures = CutOutsOnPhotographs(found, photographs(30), 98, seed=0)
    assert len(set(pictures.backgrounds)) == 5
    again = CutOutsOnPhotographs(found[:3], photographs(30), 98, seed=0)
    other = CutOutsOnPhotographs(found, photographs(30), 98, seed=1)
    assert again.backgrounds == pictures.backgrounds[:3] != other.backgrounds[:3]
    for i in range(3):
        masks = [one.pasted(i, 0.1)[1] for one in (pictures, again, other)]
        assert (masks[0] == masks[1]).all()
        assert not (masks[0] == masks[2]).all()
    corners = {tuple(np.argwhere(pictures.pasted(i, 0.1)[1]).min(0)) for i in range(5)}
    assert len(corners) == 5
    with pytest.raises(DataError, match="a photograph for each of the 5 objects, but there are 4"):
        CutOutsOnPhotographs(found, photographs(4), 98)


def test_what_cannot_be_pasted_is_left_out_with_a_reason(tmp_path):
    files = [
        stamp(tmp_path / "good.png"),
        stamp(tmp_path / "small.png", (20, 20)),
        stamp(tmp_path / "long.png", (400, 60)),
        tmp_path / "opaque.png",
        tmp_path / "empty.png",
    ]
    Image.new("RGB", (50, 50)).save(files[3])
    Image.new("RGBA", (50, 50), (9, 9, 9, 60)).save(files[4])
    found, refused = find_cutouts(files, 98, [0.1, 0.4])
    assert [one.path.name for one in found] == ["good.png"]
    assert [text.split(":")[1].strip()[:28] for text in refused] == [
        "too small, to be enlarged 3.",
        "too long or too thin to take",
        "the image has no alpha chann",
        "nothing in this image is mor",
    ]
    assert found[0].picture.size == (90, 60)  # cut to what is opaque
    with pytest.raises(MaskError, match="more than half opaque"):
        read_cutout(files[4])


# ------------------------------------------------------------------------------------------------------- agreement


def by_definition(a, b) -> float:
    """Spearman's correlation by loops: Pearson's of ranks, equal values sharing their mean rank."""

    def ranks(values):
        return [sum(u < v for u in values) + (sum(u == v for u in values) - 1) / 2 for v in values]

    first, second = ranks(list(a)), ranks(list(b))
    x, y = (math.fsum(one) / len(one) for one in (first, second))
    product = math.fsum((u - x) * (v - y) for u, v in zip(first, second, strict=True))
    squares = [math.fsum((u - m) ** 2 for u in one) for one, m in ((first, x), (second, y))]
    return product / math.sqrt(squares[0] * squares[1])


@pytest.mark.parametrize("accuracies", [[3.0, 1.0, 2.0, 5.0, 4.0], [3.0, 1.0, 1.0, 5.0, 4.0]])
def test_the_correlation_and_its_p_are_those_by_definition(accuracies):
    aurocs = np.random.default_rng(0).random((5, 7))
    found = agreement(aurocs, np.array(accuracies))
    means = aurocs.mean(1)
    assert found.correlation == pytest.approx(by_definition(means, accuracies))
    all_of_them = [abs(by_definition(order, accuracies)) for order in itertools.permutations(means)]
    assert found.p == pytest.approx(np.mean([one >= abs(found.correlation) - 1e-9 for one in all_of_them]))
    assert (found.criteria, found.images) == (5, 7)


def test_the_interval_is_of_the_errors_of_both():
    random = np.random.default_rng(0)
    levels = np.arange(9)[:, None] / 10
    sharp = levels + 0.001 * random.standard_normal((9, 40))
    accuracies = 50.0 + np.arange(9)
    sure = agreement(sharp, accuracies, np.full(9, 0.01))
    assert (sure.correlation, sure.low, sure.high) == (1.0, 1.0, 1.0)
    assert sure.p < 0.001
    assert agreement(sharp, accuracies, np.full(9, 3.0)).low < 0.95
    assert agreement(levels + 3 * random.standard_normal((9, 40)), accuracies).low < 0.8
    # What all criteria share from image to image says nothing about their order.
    shared = agreement(sharp + 5 * random.standard_normal(40), accuracies)
    assert (shared.low, shared.high) == (1.0, 1.0)
    assert agreement(sharp, -accuracies).correlation == -1


def test_what_has_no_order_is_refused():
    with pytest.raises(ValueError, match=r"at least 4 criteria, but got \(3, 5\)"):
        agreement(np.zeros((3, 5)), np.zeros(3))
    with pytest.raises(ValueError, match="no order"):
        agreement(np.zeros((4, 5)), np.arange(4.0))


# ------------------------------------------------------------------------------------------------------ the script


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(EVIDENCE))
    import foreground

    yield foreground
    for name in ("foreground", "foreground_report"):
        sys.modules.pop(name, None)


def test_the_script_measures_and_writes_what_it_says(tmp_path, script):
    for i in range(4):
        stamp(tmp_path / f"stamps/animals/birds/{i}.png", (60 + 5 * i, 60))
    for drawn in ("animals/cartoon/a.png", "symbols/a.png", "animals/birds/0_mirror.png", "space/a.png"):
        stamp(tmp_path / "stamps" / drawn)
    for split, i in itertools.product(("train", "val"), range(5)):
        Image.new("RGB", (70, 64), (40 * i, 90, 200)).save(make(tmp_path / split / "sky" / f"{split}{i}.png"))
    (tmp_path / "accuracy.csv").write_text(
        "method,keep_rate,top1,top1_se\ndense,,90,1\n"
        "random,0.7,80,1.5\nevit,0.7,99,1.5\nevit-drop,0.7,82,1.5\nshannon,0.7,83,1.5\n"
        "renyi-2,0.7,88,1.5\nrenyi-inf,0.7,89,1.5\ntome,0.7,70,1\n"
    )
    options = ["--weights", "a=none", "--weights", "b=none", "--model", "test_vit", "--image-size", "64"]
    options += ["--data", "folder", "--root", str(tmp_path), "--stamps", str(tmp_path / "stamps")]
    options += ["--shares", "0.1,0.3", "--orders", "1,inf", "--methods", "random,evit,evit-drop,shannon-merge,renyi-2"]
    options += ["--accuracy", str(tmp_path / "accuracy.csv"), "--output", str(tmp_path / "out")]
    script.main(options)
    written = json.loads((tmp_path / "out/foreground.json").read_text())
    records, about = written["records"], written["about"]
    assert about["objects"] == 4
    scores = ["random", "evit", "shannon", "renyi-2", "renyi-inf"]
    assert list(dict.fromkeys(record["score"] for record in records)) == [*scores, "pixels"]
    depth, blocks = 6, about["pruning_blocks"]
    assert len(records) == 2 * 3 * (5 * (depth + 1) + 1)  # models, sizes and their mean, scores, blocks and their mean
    by = {(one["model"], one["share"], one["score"], one["block"]): one for one in records}
    for score in scores:
        parts = [by["a", 0.1, score, block]["auroc"] for block in blocks]
        assert by["a", 0.1, score, "all"]["auroc"] == pytest.approx(np.mean(parts))
        sizes = [by["a", share, score, 2]["auroc"] for share in (0.1, 0.3)]
        assert by["a", "all", score, 2]["auroc"] == pytest.approx(np.mean(sizes))
        # The same random weights twice: no difference, and no error of it, since the pictures are the same.
        assert by["b", "all", score, "all"]["difference"] == by["b", "all", score, "all"]["difference_error"] == 0
        # Pairs of scores on the same pictures: the mean of the differences is the difference of the means.
        less = by["a", 0.1, score, 2]["auroc"] - by["a", 0.1, "evit", 2]["auroc"]
        assert by["a", 0.1, score, 2]["less_evit"] == (None if score == "evit" else pytest.approx(less))
    assert by["a", 0.3, "pixels", None]["auroc"] > 0.7  # a red disc on blue
    assert [(one["model"], one["scores"]) for one in about["agreement"]] == [
        (model, names) for model in "ab" for names in (", ".join(scores), ", ".join(scores[1:]))
    ]
    # evit-drop stands for class attention, since it alone differs from the others in nothing but its criterion.
    means = [by["a", "all", score, "all"]["auroc"] for score in scores]
    assert about["agreement"][0]["correlation"] == pytest.approx(by_definition(means, [80, 82, 83, 88, 89]))
    assert (tmp_path / "out/foreground.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "out/foreground.md").read_text()
    assert "Difference to a, on the same pictures" in text
    with (tmp_path / "out/foreground.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(records)
    script.main([*options[:-1], str(tmp_path / "out"), "--again"])
    assert (tmp_path / "out/foreground.md").read_text() == text


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_the_rows_of_evaluate_are_understood_by_their_labels(tmp_path, script):
    from foreground_report import accuracies

    names = ["dense", "EViT, 0.7", "EViT, no fused token, 0.7", "Rényi, order ∞, 0.5", "Rényi, order 0.5, 0.5"]
    rows = [{"name": name, "top1": 50.0 + i} for i, name in enumerate(names)]
    (tmp_path / "evaluate.json").write_text(json.dumps({"records": rows}))
    found = [(row["method"], row["top1"]) for row in accuracies(tmp_path / "evaluate.json")]
    assert found == [("evit", 51.0), ("evit-drop", 52.0), ("renyi-inf", 53.0), ("renyi-0.5", 54.0)]
    (tmp_path / "evaluate.json").write_text(json.dumps({"records": rows[:1]}))
    with pytest.raises(ValueError, match="of 1 rows none has"):
        accuracies(tmp_path / "evaluate.json")
