"""The foreground check: AUROC against every pair, masks as files hold them, and a model whose answer is known."""

from __future__ import annotations

import csv
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from small_models import create
from typer.testing import CliRunner

pytest.importorskip("scipy")

import entropatch.cli.check as command
from entropatch import Criterion, Merge, Method, PruneConfig, prune_, register_method, trace
from entropatch.cli import app
from entropatch.config import method_config
from entropatch.data import DataError, open_data
from entropatch.data.base import Chosen
from entropatch.data.images import ImageError, cropped, to_tensor
from entropatch.data.masks import MaskError, alpha_mask, foreground_share, load_mask, masks_by_stem, patch_means
from entropatch.look import foreground as module
from entropatch.look.foreground import auroc, check_foreground, pixel_deviation
from entropatch.look.inspection import entropy_maps, pruning_stages
from entropatch.look.proposing import best_of, propose
from entropatch.look.verdict import judge
from entropatch.methods import METHODS

ORDERS = (1.0, 2.0, math.inf)


def pairwise_auroc(scores, foreground) -> float:
    """By its definition: every foreground patch against every background patch."""
    pairs = list(itertools.product(scores[foreground], scores[~foreground]))
    return math.fsum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


# ------------------------------------------------------------------------------------------------------- AUROC


@pytest.mark.parametrize("levels", [2, 4, 10**6])
def test_auroc_is_that_of_all_pairs_ties_counting_half(levels):
    random = np.random.default_rng(levels)
    scores = random.integers(0, levels, (3, 40)).astype(float)
    foreground = random.random(40) < 0.3
    expected = [pairwise_auroc(row, foreground) for row in scores]
    assert auroc(scores, foreground).tolist() == pytest.approx(expected, abs=1e-12)


def test_auroc_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    scores, foreground = random.integers(0, 9, 60).astype(float), random.random(60) < 0.5
    assert float(auroc(scores, foreground)) == pytest.approx(metrics.roc_auc_score(foreground, scores))


def test_auroc_at_its_ends_and_its_refusals():
    foreground = np.array([True, False, True, False])
    assert float(auroc(np.array([3.0, 1, 2, 0]), foreground)) == 1
    assert float(auroc(np.array([0.0, 2, 1, 3]), foreground)) == 0
    assert float(auroc(np.zeros(4), foreground)) == 0.5
    with pytest.raises(ValueError, match="both classes, but got 4 of one and 0"):
        auroc(np.zeros(4), np.ones(4, bool))
    with pytest.raises(ValueError, match="finite"):
        auroc(np.array([0, 1, 2, np.nan]), foreground)


# ------------------------------------------------------------------------------------------------------- masks


def saved(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    Image.fromarray(pixels).convert(mode or Image.fromarray(pixels).mode).save(path)
    return path


def test_masks_of_every_kind(tmp_path):
    levels = np.array([[0, 1, 127], [128, 200, 255]], np.uint8)
    expected = levels > 127
    assert np.array_equal(load_mask(saved(tmp_path / "grey.png", levels)), expected)
    assert np.array_equal(load_mask(saved(tmp_path / "rgb.png", levels, "RGB")), expected)
    assert np.array_equal(load_mask(saved(tmp_path / "grey.png", levels), level=0), levels > 0)
    Image.fromarray(expected).save(tmp_path / "one.png")
    assert np.array_equal(load_mask(tmp_path / "one.png"), expected)
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(load_mask(tmp_path / "deep.png"), expected)
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="L").convert("P")
    palette.putpalette([255, 255, 255, 0, 0, 0, 9, 9, 9])
    palette.save(tmp_path / "palette.png")
    assert load_mask(tmp_path / "palette.png").tolist() == [[False, True, True]]


def test_masks_that_leave_it_open_are_refused(tmp_path):
    numbers = saved(tmp_path / "numbers.png", np.array([[0, 1, 2]], np.uint8))
    with pytest.raises(MaskError, match=r"numbers.png: nothing in this mask is above 127, its highest value is 2"):
        load_mask(numbers)
    assert load_mask(numbers, level=0).tolist() == [[False, True, True]]
    assert not load_mask(saved(tmp_path / "black.png", np.zeros((2, 2), np.uint8))).any()  # nothing to be mistaken
    with pytest.raises(MaskError, match="transparent"):
        load_mask(saved(tmp_path / "alpha.png", np.full((2, 2, 4), 200, np.uint8)))
    with pytest.raises(ImageError, match="no such file"):
        load_mask(tmp_path / "none.png")


def test_alpha_channels_are_masks(tmp_path):
    pixels = np.full((2, 2, 4), 255, np.uint8)
    pixels[..., 3] = [[0, 127], [128, 255]]
    assert alpha_mask(saved(tmp_path / "a.png", pixels)).tolist() == [[False, False], [True, True]]
    with pytest.raises(MaskError, match="no alpha channel"):
        alpha_mask(saved(tmp_path / "b.png", pixels[..., :3]))


def test_each_image_has_one_mask_of_its_name(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for name in ("a.png", "b.png", "b.bmp"):
        saved(folder / name, np.zeros((2, 2), np.uint8))
    assert masks_by_stem([Path("x/a.jpg")], folder) == [folder / "a.png"]
    with pytest.raises(MaskError, match=r"has none for x/c.jpg, d.png\."):
        masks_by_stem([Path("a.png"), Path("x/c.jpg"), Path("d.png")], folder)
    with pytest.raises(MaskError, match=r"one mask is needed, but .* holds b.bmp, b.png"):
        masks_by_stem([Path("b.jpg")], folder)
    with pytest.raises(MaskError, match="different names"):
        masks_by_stem([Path("x/a.jpg"), Path("y/a.jpg")], folder)


def test_a_mask_is_cut_as_its_image_is():
    model = create("deit")  # 80×80 pixels, 5×5 patches
    mask = np.zeros((200, 400), bool)
    mask[:, 100:180] = True  # of the middle 200×200 that the model sees, the left two fifths
    share = foreground_share(mask, model, (5, 5))
    assert share.shape == (5, 5)
    image = np.where(mask, np.uint8(255), np.uint8(0))
    assert share == pytest.approx(patch_means(np.asarray(cropped(Image.fromarray(image), model)) / 255, (5, 5))[..., 0])
    assert (share >= 0.5).tolist() == [[True, True, False, False, False]] * 5


def test_pixel_deviation_is_that_of_loops():
    crop = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    whole = crop.reshape(-1, 3).mean(0) / 255
    for row, column in itertools.product(range(2), range(2)):
        patch = crop[3 * row : 3 * row + 3, 4 * column : 4 * column + 4].reshape(-1, 3).mean(0) / 255
        assert pixel_deviation(crop, (2, 2))[row, column] == pytest.approx(math.dist(patch, whole))
    with pytest.raises(ValueError, match="must divide"):
        pixel_deviation(crop, (4, 2))


# --------------------------------------------------------------------------------------------------- the check


def pictures(count: int, size: int = 80) -> list[tuple[Image.Image, np.ndarray]]:
    """Noise with a bright square somewhere, and where it is."""
    found = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 120, (size, size, 3)).astype(np.uint8)
        mask = np.zeros((size, size), bool)
        row, column = random.integers(0, size // 2, 2)
        mask[row : row + size // 2, column : column + size // 2] = True
        pixels[mask] += 130
        found.append((Image.fromarray(pixels), mask))
    return found


def test_aurocs_are_those_of_the_scores_that_pruning_ranks_by():
    model = create("deit")
    pairs = pictures(4)
    check = check_foreground(model, iter(pairs), ORDERS)
    names = ["shannon", "renyi-2", "renyi-inf", "evit"]
    assert [(record["score"], record["block"]) for record in check.records] == [
        *itertools.product(names, range(4)),
        ("pixels", None),
    ]
    got = {(record["score"], record["block"]): record for record in check.records}
    expected: dict = {}
    for image, mask in pairs:
        foreground = (foreground_share(mask, model, (5, 5)) >= 0.5).ravel()
        images = to_tensor(image, model)[None]
        maps = entropy_maps(model, images, ORDERS, range(4))[0]
        for name, per_block in zip(names, maps, strict=False):
            for block, values in enumerate(per_block):
                expected.setdefault((name, block), []).append(pairwise_auroc(-values.ravel(), foreground))
        evit = pruning_stages(model, images, method_config("evit", 1.0, range(4)))[0].scores
        for block, values in enumerate(evit):
            expected.setdefault(("evit", block), []).append(pairwise_auroc(values.ravel(), foreground))
        pixels = pixel_deviation(np.asarray(cropped(image, model)), (5, 5)).ravel()
        expected.setdefault(("pixels", None), []).append(pairwise_auroc(pixels, foreground))
    for key, values in expected.items():
        assert got[key]["auroc"] == pytest.approx(np.mean(values), abs=1e-9)
        assert got[key]["standard_error"] == pytest.approx(np.std(values, ddof=1) / 2, abs=1e-9)
        assert got[key]["images"] == 4
    assert got["pixels", None]["auroc"] == pytest.approx(np.mean(expected["pixels", None]), abs=1e-9)
    assert check.means["shannon"][0] == pytest.approx(np.mean([got["shannon", b]["auroc"] for b in range(4)]))
    assert check.images == 4
    assert check.one_class == 0
    assert check.pruning_blocks == (1, 2, 3)


def test_a_model_without_class_token_has_no_score_of_evit():
    check = check_foreground(create("siglip"), pictures(2), [2.0])
    assert {record["score"] for record in check.records} == {"renyi-2", "pixels"}
    assert "EViT" not in check.comparison


def test_the_scores_of_any_method_are_measured_and_judged(monkeypatch):
    monkeypatch.setattr(METHODS, "_methods", dict(METHODS._methods))

    @dataclass(frozen=True)
    class _Place(Criterion):
        """Nothing but the place of a patch in the grid."""

        kind = "_place"

        def importance(self, attention):
            return torch.arange(attention.num_patches).expand(attention.q.shape[0], -1).double()

    register_method(Method("by-place", "By place", "", _Place(), Merge()))
    found = check_foreground(create("deit"), pictures(3), [2.0])
    assert {record["score"] for record in found.records} == {"renyi-2", "evit", "by-place", "pixels"}
    assert [verdict.score for verdict in found.verdicts] == ["renyi-2"]
    named = check_foreground(create("deit"), pictures(3), [2.0], methods=["by-place", "renyi-3.0"])
    assert [verdict.score for verdict in named.verdicts] == ["renyi-2", "by-place", "renyi-3"]
    assert named.verdicts[1].text.startswith("By place: a high score marks the foreground in")
    expected = []
    for _, mask in pictures(3):
        inside = (foreground_share(mask, create("deit"), (5, 5)) >= 0.5).ravel()
        pairs = [(a > b) for a in np.flatnonzero(inside) for b in np.flatnonzero(~inside)]
        expected.append(np.mean(pairs))
    got = [record["auroc"] for record in named.records if record["score"] == "by-place"]
    assert got == [pytest.approx(np.mean(expected))] * 4  # the same in every block
    with pytest.raises(ValueError, match="tome asks for no scores"):
        check_foreground(create("deit"), pictures(1), [2.0], methods=["tome"])


def test_images_of_one_class_are_counted_and_not_measured():
    pairs = pictures(3)
    empty = (pairs[0][0], np.zeros((80, 80), bool))
    full = (pairs[0][0], np.ones((80, 80), bool))
    steps = []
    check = check_foreground(create("deit"), [empty, *pairs, full], [1.0], on_image=lambda: steps.append(1))
    assert (check.images, check.one_class, len(steps)) == (3, 2, 5)
    alone = check_foreground(create("deit"), pairs, [1.0])
    assert alone.records == check.records
    with pytest.raises(ValueError, match="of 2 images none does"):
        check_foreground(create("deit"), [empty, full], [1.0])


def test_a_verdict_on_every_order_is_by_its_rule(monkeypatch):
    """Blocks at 0.9, 0.5 and 0.1, give or take 0.02 from image to image, and an order for which all are level."""
    levels = np.array([0.9, 0.5, 0.1, 0.9])
    drift = iter(np.tile([-0.02, 0.02, 0.0], 20))

    def aurocs(*_):
        shift = next(drift)
        level = 0.6 + 0 * levels + shift
        return {"shannon": levels + shift, "renyi-2": level, "evit": 0.7 + 0 * levels + shift}, 0.5

    monkeypatch.setattr(module, "image_aurocs", aurocs)

    def check(count, blocks):
        return check_foreground(create("deit"), pictures(count), [1.0, 2.0], blocks=blocks)

    good = check(3, (0, 3))
    assert [(one.score, one.blocks, one.best, one.trusted) for one in good.verdicts] == [
        ("shannon", (0, 3), (0, 3), True),
        ("renyi-2", (0, 3), (0, 3), True),
    ]
    assert good.verdicts[0].text == (
        "Shannon: low entropy marks the foreground in 2 of 4 blocks. At blocks 0, 3 its AUROC is 0.90, 0.90: above "
        "chance in each, and these are its best blocks: trust low entropy for pruning there."
    )
    assert good.comparison == (
        "Mean AUROC over 3 images, 0.5 being chance: Shannon 0.60 ± 0.01 (above chance in 2 of 4 blocks), Rényi, order "
        "2 0.60 ± 0.01 (above chance in 4 of 4 blocks), EViT 0.70 ± 0.01 (above chance in 4 of 4 blocks), pixel "
        "deviation 0.50 ± 0.00."
    )
    unsure, level = check(3, (0, 1)).verdicts
    assert not unsure.trusted
    assert "not shown to beat chance in block 1;" in unsure.text
    assert unsure.best == (0, 3)
    assert level.trusted
    assert level.best == (0, 1)  # as good as any other
    backwards = check(3, (1, 2)).verdicts[0]
    assert not backwards.trusted
    assert backwards.text.endswith(
        "At blocks 1, 2 its AUROC is 0.50, 0.10: do not trust low entropy there; it marks the background in block 2, "
        "and its best blocks 0, 3 (0.90, 0.90) are better by 0.60 ± 0.00 on average: --blocks 0,3 prunes there."
    )
    single = check(1, (0,)).verdicts[0]
    assert not single.trusted
    assert "one image alone" in single.text
    with pytest.raises(ValueError, match=r"blocks must lie in 0 … 3 .* but got \(4,\)"):
        check(2, (4,))


def test_blocks_that_can_be_trusted_are_not_called_the_best_where_others_are():
    """0.62, 0.76 and 0.82 at the paper's blocks; 0.9 and more at 8, 9 and 10."""
    means = np.full(12, 0.55)
    means[[3, 6, 9, 8, 10]] = 0.62, 0.76, 0.90, 0.91, 0.95
    aurocs = means + np.array([[-0.01], [0.01], [0.0], [0.0]])
    verdict = judge("renyi-2", "Rényi, order 2", aurocs, (3, 6, 9), of_paper=True)
    assert (verdict.trusted, verdict.best) == (True, (8, 9, 10))
    assert verdict.text == (
        "Rényi, order 2: low entropy marks the foreground in 12 of 12 blocks. At blocks 3, 6, 9 (the paper's) its "
        "AUROC is 0.62, 0.76, 0.90: above chance in each, but its best blocks 8, 9, 10 (0.91, 0.90, 0.95) are better "
        "by 0.16 ± 0.00 on average: --blocks 8,9,10 prunes there, later and so with less saved."
    )
    noisy = means + np.array([[-0.01], [0.01]]) + np.where(np.arange(12) == 3, [[-0.9], [0.5]], 0.0)
    assert "which may be chance" in judge("renyi-2", "Rényi, order 2", noisy, (3, 6, 9)).text
    level = 0.9 + np.array([[-0.01], [0.01], [0.0]]) + np.where(np.arange(12) == 4, [[0.02], [-0.01], [0.0]], 0.0)
    assert judge("renyi-2", "Rényi, order 2", level, (3, 6, 9)).text.endswith(
        "above chance in each, so trust low entropy for pruning there. Its best blocks 3, 4, 6 (0.90, 0.90, 0.90) are "
        "better by 0.00 ± 0.00 on average, which may be chance."
    )


def test_proposed_are_the_best_blocks_that_are_above_chance_by_more_than_the_error():
    """Against a plain sort; a block whose mean is the highest but as wide as chance is not among them."""
    random = np.random.default_rng(0)
    means = random.uniform(0.3, 0.9, 12)
    aurocs = (means + random.normal(0, 0.02, (40, 12))).clip(0, 1)
    aurocs[:, 5] = np.where(np.arange(40) % 20 < 19, 0.99, -90.0)  # the highest but for two images
    for most in (1, 3, 12):
        marking = [
            block
            for block in range(12)
            if aurocs[:, block].mean() - 2 * aurocs[:, block].std(ddof=1) / math.sqrt(40) > 0.5
        ]
        best = sorted(sorted(marking, key=lambda block: -aurocs[:, block].mean())[:most])
        found = propose("renyi-2", "Rényi, order 2", aurocs, most)
        assert found.blocks == tuple(best)
        assert 5 not in found.blocks
        assert found.auroc == pytest.approx(np.mean([aurocs[:, block].mean() for block in best]))
        assert found.config(0.4) == PruneConfig(0.4, order=2.0, blocks=tuple(best))
    assert "only" in found.text
    assert propose("renyi-2", "", np.full((5, 4), 0.7), 2).blocks == (0, 1)  # of equal ones the earlier
    nothing = propose("shannon", "Shannon", np.full((5, 4), 0.5), 2)
    assert (nothing.blocks, best_of([nothing])) == ((), None)
    assert nothing.text == (
        "Shannon: no block is proposed, since in none its AUROC is above chance by more than the error."
    )
    with pytest.raises(ValueError, match="no block is proposed"):
        nothing.config()
    assert "one image alone" in propose("shannon", "Shannon", np.ones((1, 4)), 2).text
    assert best_of([nothing, found]) is found


def test_every_verdict_has_a_proposal_and_the_best_of_them_prunes():
    check = check_foreground(create("deit"), pictures(6), [1.0, 2.0], methods=["evit"], blocks=(1, 2))
    assert [one.score for one in check.proposals] == [one.score for one in check.verdicts]
    assert all(len(one.blocks) <= 2 for one in check.proposals)
    more = check_foreground(create("deit"), pictures(6), [1.0, 2.0], blocks=(1, 2), most_blocks=4)
    assert max(len(one.blocks) for one in more.proposals) <= 4
    with pytest.raises(ValueError, match="most_blocks must be at least 1, but got 0"):
        check_foreground(create("deit"), pictures(1), [1.0], most_blocks=0)


def test_a_block_out_of_range_is_refused_before_any_image_is_read():
    def images():
        raise AssertionError("an image was read")
        yield

    with pytest.raises(ValueError, match="blocks must lie in"):
        check_foreground(create("deit"), images(), [1.0], blocks=(4,))


def test_bad_input_is_refused():
    model = create("deit")
    with pytest.raises(ValueError, match="at least one order"):
        check_foreground(model, pictures(1), [])
    with pytest.raises(ValueError, match="order must be greater than 0"):
        check_foreground(model, pictures(1), [-1.0])
    image, _ = pictures(1)[0]
    with pytest.raises(MaskError, match=r"image 1: the mask must have the size of its image, 80×80, but has 40×80"):
        check_foreground(model, [(image, np.zeros((80, 40), bool))], [1.0])


# ------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for folder in (images, masks):
        folder.mkdir()
    for number, (image, mask) in enumerate(pictures(3, 90)):
        image.save(images / f"{number}.png")
        Image.fromarray(mask).save(masks / f"{number}.bmp")
    return images, masks


@pytest.fixture
def run(checkpoint):
    def invoke(*arguments):
        known = ["check", "--model", "test_vit", "--weights", str(checkpoint)]
        return CliRunner().invoke(app, [*known, *map(str, arguments)])

    return invoke


def test_the_command_writes_what_the_library_finds(run, folders, tmp_path, checkpoint):
    images, masks = folders
    result = run(images, "--masks", masks, "--orders", "1,inf", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    model = timm.create_model("test_vit", num_classes=0)
    state = safetensors.torch.load_file(checkpoint)
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")})
    # The default order is looked at too.
    expected = check_foreground(model, pictures(3, 90), (1.0, math.inf, 2.0))
    names = ["check.csv", "check.json", "check.md", "check.png", "check.svg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    data = json.loads((tmp_path / "out" / "check.json").read_text())
    assert data["records"] == expected.records
    assert [one.score for one in expected.verdicts] == ["shannon", "renyi-inf", "renyi-2"]
    for one in expected.verdicts:
        assert data["about"][f"verdict, {one.score}"] == one.text
        assert one.text in result.stdout
    with (tmp_path / "out" / "check.csv").open() as file:
        assert [float(row["auroc"]) for row in csv.DictReader(file)] == [row["auroc"] for row in expected.records]
    assert expected.comparison in result.stdout
    table = command.foreground_table(expected)
    assert table in result.stdout
    assert table in (tmp_path / "out" / "check.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["block", "Shannon", "Rényi, order ∞", "Rényi, order 2", "EViT", "pixel deviation"]
    assert [row[0] for row in rows[2:]] == [*map(str, range(6)), "mean"]
    got = {(one["score"], one["block"]): one for one in expected.records}
    assert rows[4][1] == f"{got['shannon', 2]['auroc']:.3f} ± {got['shannon', 2]['standard_error']:.3f}"
    assert len({row[5] for row in rows[2:]}) == 1


def test_the_proposal_is_a_file_that_prunes_or_none(run, folders, tmp_path, monkeypatch):
    """Blocks 4 and 5 mark the foreground by order 1, block 1 alone by the default order, nothing by order ∞."""
    images, masks = folders
    drift = iter(np.tile([-0.02, 0.02, 0.0], 20))
    level = np.full(6, 0.4)
    found = {
        "shannon": np.array([0.4, 0.4, 0.4, 0.4, 0.7, 0.6]),
        "renyi-inf": level,
        "renyi-2": np.where(np.arange(6) == 1, 0.95, 0.4),
    }

    def aurocs(*_):
        shift = next(drift)
        return {name: one + shift for name, one in found.items()}, 0.5

    monkeypatch.setattr(module, "image_aurocs", aurocs)
    path = tmp_path / "folder" / "proposed.json"
    options = ("--masks", masks, "--orders", "1,inf", "--blocks", "2,3", "--save-config", path)
    result = run(images, *options, "--keep-rate", 0.6, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "Rényi, order 2: block 1 proposed, AUROC 0.95 ± 0.01; only 1 of 2" in result.stdout
    assert "Proposed of all: Shannon at blocks 4,5; --method shannon --blocks 4,5." in result.stdout
    written = PruneConfig.load(path)
    assert written == PruneConfig(0.6, order=1.0, blocks=(4, 5))
    model = prune_(timm.create_model("test_vit", num_classes=0), written)
    with trace(model) as seen:
        model(torch.zeros(1, 3, 160, 160))
    assert seen.counts == [100, 60, 36]
    about = json.loads((tmp_path / "out" / "check.json").read_text())["about"]
    assert about["proposal, renyi-inf"].startswith("Rényi, order ∞: no block is proposed")
    svg = (tmp_path / "out" / "check.svg").read_text()
    assert "proposed blocks" in svg
    assert "pruning blocks" in svg
    # Replaced by the next one; left as it is where nothing is proposed.
    assert run(images, *options, "--keep-rate", 0.5, "--most-blocks", 1).exit_code == 0
    assert PruneConfig.load(path) == PruneConfig(0.5, order=2.0, blocks=(1,))
    for values in found.values():
        values[:] = 0.5
    result = run(images, *options)
    assert result.exit_code == 1
    assert f"{path} is not written, since no block is proposed." in result.stderr
    assert PruneConfig.load(path).keep_rate == 0.5
    result = run(images, *options, "--keep-rate", 1.5)
    assert (result.exit_code, "keep_rate must lie in (0, 1]" in result.stderr) == (2, True)


def test_alpha_channels_from_the_command_line(run, tmp_path):
    for number, (image, mask) in enumerate(pictures(2)):
        image.putalpha(Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))))
        image.save(tmp_path / f"{number}.png")
    result = run(tmp_path / "0.png", tmp_path / "1.png", "--alpha", "--orders", "2")
    assert result.exit_code == 0, result.output
    assert "over 2 images" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "masks come from one of --masks FOLDER, --alpha or --data NAME, but got none"),
        (("{images}", "--masks", "{masks}", "--alpha"), "but got --masks and --alpha"),
        (("--masks", "{masks}"), "name the image files"),
        (("{images}", "--data", "digits"), "leave out the files"),
        (("--data", "digits"), "this data set has no masks"),
        (("{images}", "--masks", "{masks}", "--orders", "0"), "order must be greater than 0"),
        (("{images}", "--masks", "{masks}", "--blocks", "17"), "blocks must lie in 0 … 5"),
        (("{images}", "--masks", "{images}/.."), "a folder without image files"),
    ],
)
def test_mistakes_end_in_one_line(run, folders, arguments, message):
    images, masks = folders
    result = run(*(argument.format(images=images, masks=masks) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_one_damaged_image_or_mask_is_named_and_the_others_are_checked(run, folders, tmp_path):
    images, masks = folders
    for number, (image, mask) in enumerate(pictures(5, 90)):
        image.save(images / f"{number}.png")
        Image.fromarray(mask).save(masks / f"{number}.bmp")
    whole = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (7, 7)).save(masks / "3.bmp")
    result = run(images, "--masks", masks, "--output", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert f"{images / '1.png'}: cannot be read" in result.stderr
    assert f"{masks / '3.bmp'}: the mask must have the size of its image, 90×90, but has 7×7" in result.stderr
    assert "2 of 5 images could not be used" in result.stderr
    left = run(*(images / f"{number}.png" for number in (0, 2, 4)), "--masks", masks)
    assert left.exit_code == 0
    assert left.stdout in result.stdout
    assert json.loads((tmp_path / "out" / "check.json").read_text())["about"]["skipped"] == 2


def test_images_none_of_which_can_be_used(run, folders):
    images, masks = folders
    result = run(images, "--alpha")
    assert result.exit_code == 1
    assert "0.png: the image has no alpha channel" in result.stderr
    (masks / "1.bmp").unlink()
    assert "has none for" in run(images, "--masks", masks).stderr


def test_help_and_table_call_the_scores_alike(run, folders):
    images, masks = folders
    words = " ".join(run("--help").stdout.replace("│", " ").split())
    assert "pixel deviation" in run(images, "--masks", masks).stdout
    assert "pixel deviation" in words


def test_skipped_images_are_reported(run, folders):
    images, masks = folders
    Image.new("L", (90, 90)).save(masks / "1.bmp")
    result = run(images, "--masks", masks)
    assert result.exit_code == 0
    assert "or none: 1" in result.stderr
    assert "over 2 images" in result.stdout


def test_data_sets_give_their_masks_through_a_choice():
    pytest.importorskip("skimage")
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("Fashion-MNIST is not installed")
    test = open_data("fashion-mnist-photos", test_limit=3, size=56).test
    assert isinstance(test, Chosen)
    assert np.array_equal(test.mask(1), test.whole.mask(test.places[1]))
    assert test.mask(1).shape == (56, 56)
    with pytest.raises(DataError, match="no masks"):
        open_data("fashion-mnist").test.mask(0)
