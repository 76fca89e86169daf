"""Figures: the right pixels from the arrays, one scale, nothing overlapping, and nothing global touched."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")

from entropatch.figures import (  # noqa: E402
    ENTROPY_COLOURS,
    entropy_and_stages,
    overview,
    remaining_title,
    save_figure,
)
from entropatch.figures.patches import count_text  # noqa: E402
from entropatch.figures.pixels import remaining  # noqa: E402
from entropatch.look.inspection import Inspection, Stages  # noqa: E402
from entropatch.methods import find_method  # noqa: E402

GREY = np.array([0.299, 0.587, 0.114])


def inspection(methods=("evit", "shannon", "renyi-2"), blocks=(3, 6, 9), grid=(4, 4), patch=16, seed=0, spread=1.0):
    """Arrays as an inspection would give them, drawn at random."""
    random = np.random.default_rng(seed)
    shape = (len(blocks), *grid)
    patches = math.prod(grid)
    stages = {}
    for name in methods:
        left = np.sort(random.permutation(patches).reshape(grid))  # a nested sequence of masks
        counts = [max(1, patches * (len(blocks) - i) // (len(blocks) + 1)) for i in range(len(blocks))]
        kept = np.stack([left < count for count in counts])
        fused = tuple(int(find_method(name).reduction.appends) * (i + 1) for i in range(len(blocks)))
        tokens = (patches, *(count + extra for count, extra in zip(counts, fused, strict=True)))
        stages[name] = Stages(blocks, random.normal(size=shape).astype(np.float32), kept, tokens, fused)
    orders = [find_method(name).order for name in methods]
    return Inspection(
        crop=random.integers(0, 256, (grid[0] * patch, grid[1] * patch, 3)).astype(np.uint8),
        blocks=blocks,
        entropy={order: (2 + spread * random.random(shape)).astype(np.float32) for order in orders if order is not None}
        or {2.0: np.full(shape, 2, np.float32)},
        stages=stages,
    )


def pictures(figure) -> list[np.ndarray]:
    """The images drawn, in the order of drawing, the colour bar left out."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def words(figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for text in figure.texts]


def patch_means(pixels: np.ndarray, patch: int = 16) -> np.ndarray:
    height, width = pixels.shape[0] // patch, pixels.shape[1] // patch
    return pixels.reshape(height, patch, width, patch, -1).mean((1, 3))


# ------------------------------------------------------------------------------------------------- what is drawn


def test_kept_patches_show_the_image_and_pruned_ones_a_faded_grey():
    seen = inspection()
    drawn = pictures(entropy_and_stages(seen))
    crop = seen.crop / 255
    # Column by column: the heat maps of each order, then the methods.
    remaining = [drawn[1 + column * 5 + 2 + row] for row in range(3) for column in range(3)]
    masks = [kept for stages in seen.stages.values() for kept in stages.kept]
    for picture, kept in zip(remaining, masks, strict=True):
        pixels = np.kron(kept, np.ones((16, 16), bool))
        assert np.array_equal(picture[pixels], crop[pixels])
        faded = picture[~pixels]
        assert np.ptp(faded, axis=1).max() < 1e-12  # no colour
        assert faded.max() <= 0.93
        plain = faded[:, 0] >= 0.7  # neither hatching nor outline
        assert 0.5 < plain.mean() < 0.85
        assert np.corrcoef(faded[plain, 0], (crop @ GREY)[~pixels][plain])[0, 1] > 0.99  # still to be recognised


@pytest.mark.parametrize("level", [0, 40, 128, 180, 200, 210, 220, 235, 255])
@pytest.mark.parametrize("width", [64, 224, 1024])
def test_pruned_patches_show_on_a_photograph_of_any_grey(level, width):
    """A patch of one grey all over is that grey where it was kept; where it was not, it is not to be taken for it."""
    crop = np.full((width, width, 3), level, np.uint8)
    kept = np.zeros((8, 8), bool)
    kept[2:6, 2:6] = True
    kept[3, 3] = False  # alone in the middle
    picture = remaining(crop, kept)
    side = width // 8
    for row, column in ((0, 0), (3, 3), (5, 7)):
        patch = picture[row * side : (row + 1) * side, column * side : (column + 1) * side, 0]
        assert np.ptp(patch) > 0.2  # hatched
        assert (abs(patch - level / 255) > 0.12).mean() > 0.1  # and not of the photograph's grey in some part
    # A dark line runs along what is kept, whatever it shows.
    assert (picture[2 * side - 1, 2 * side : 6 * side, 0] < 0.2).all()
    assert (picture[3 * side, 3 * side : 4 * side, 0] < 0.2).all()
    assert np.array_equal(picture[4 * side : 5 * side, 4 * side : 5 * side], crop[:side, :side] / 255)


def test_each_heat_map_spans_the_colours_with_its_own_entropies_and_says_which():
    """Entropies of blocks and orders that lie far apart: on one scale each map would be of one colour."""
    seen = inspection()
    apart = {
        order: (maps / 10 + np.arange(3)[:, None, None] + 5 * place).astype(np.float32)
        for place, (order, maps) in enumerate(seen.entropy.items())
    }
    seen = Inspection(np.full_like(seen.crop, 128), seen.blocks, apart, seen.stages)
    figure = entropy_and_stages(seen)
    drawn = pictures(figure)
    colours = matplotlib.colormaps[ENTROPY_COLOURS]
    for row, maps in enumerate(apart.values()):
        for column in range(3):
            low, high = np.percentile(maps[column], (1, 99))
            expected = colours((maps[column] - low) / (high - low))[..., :3]
            assert patch_means(drawn[1 + column * 5 + row]) == pytest.approx(expected, abs=1e-6)
            assert f"{low:.2f}–{high:.2f} nats" in words(figure)
    bar = next(axes for axes in figure.axes if not axes.images)
    assert bar.get_ylabel() == "entropy, low to high"
    assert list(bar.get_yticks()) == []
    together = overview({"a": seen, "b": seen}, order=1.0)
    low, high = np.percentile(apart[1.0][-1], (1, 99))
    assert words(together).count(f"{low:.2f}–{high:.2f} nats") == 2
    with pytest.raises(ValueError, match="scale must be one of panel, shared, but got 'row'"):
        entropy_and_stages(seen, scale="row")


def test_the_title_of_an_overview_tells_the_rate_from_what_remains():
    seen = inspection(blocks=(3, 6, 9))
    assert remaining_title(seen, 0.7) == "4 of 16 patches (25 %) after block 9: keep rate 0.7 at each of 3 stages"
    assert remaining_title(seen, 0.7, 1) == "8 of 16 patches (50 %) after block 6: keep rate 0.7 at each of 2 stages"
    assert remaining_title(inspection(blocks=(3,)), 0.5) == "8 of 16 patches (50 %) after block 3: keep rate 0.5"
    assert "a model." in words(overview({"a": seen}, note="a model."))
    seen.stages["evit"].kept[2].reshape(-1)[seen.stages["evit"].kept[2].reshape(-1).argmax()] = False
    assert remaining_title(seen, 0.7) == "3–4 of 16 patches (19–25 %) after block 9: keep rate 0.7 at each of 3 stages"


def test_the_mean_colour_of_a_patch_is_that_of_its_entropy_on_one_scale():
    seen = inspection()
    # Grey all over, so that nothing is clipped and the image adds no colour of its own.
    seen = Inspection(np.full_like(seen.crop, 128), seen.blocks, seen.entropy, seen.stages)
    figure = entropy_and_stages(seen, scale="shared")
    drawn = pictures(figure)
    everything = np.concatenate([maps.ravel() for maps in seen.entropy.values()])
    low, high = np.percentile(everything, (1, 99))
    colours = matplotlib.colormaps[ENTROPY_COLOURS]
    for row, maps in enumerate(seen.entropy.values()):
        for column in range(3):
            expected = colours((maps[column] - low) / (high - low))[..., :3]
            assert patch_means(drawn[1 + column * 5 + row]) == pytest.approx(expected, abs=1e-6)
    bar = next(axes for axes in figure.axes if not axes.images)
    assert bar.get_ylim() == pytest.approx((low, high))
    assert bar.get_ylabel() == "entropy (nats)"


def test_equal_entropies_have_one_colour_in_the_middle_of_the_scale():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = inspection(spread=0.0)
        seen = Inspection(np.full_like(seen.crop, 128), seen.blocks, seen.entropy, seen.stages)
        heat = pictures(entropy_and_stages(seen))[1]
    assert heat == pytest.approx(np.broadcast_to(matplotlib.colormaps[ENTROPY_COLOURS](0.5)[:3], heat.shape), abs=0.02)


def test_low_is_blue_and_high_is_red():
    (low_red, _, low_blue, _), (high_red, _, high_blue, _) = matplotlib.colormaps[ENTROPY_COLOURS]([0.0, 1.0])
    assert low_blue > low_red + 0.3
    assert high_red > high_blue + 0.3


def test_the_image_shows_through_the_heat_map_without_changing_its_colour():
    seen = inspection()
    crop = np.kron(np.tile([[100, 150], [150, 100]], (16, 16)), np.ones((2, 2)))[..., None].repeat(3, 2)
    seen = Inspection(crop.astype(np.uint8), seen.blocks, seen.entropy, seen.stages)
    first = pictures(entropy_and_stages(seen, scale="shared"))[1]
    block = first[:16, :16]
    assert block.std(axis=(0, 1)).max() > 0.03
    middle = (block.mean((0, 1)) > 0.1) & (block.mean((0, 1)) < 0.9)
    low, high = np.percentile(np.concatenate([maps.ravel() for maps in seen.entropy.values()]), (1, 99))
    expected = matplotlib.colormaps[ENTROPY_COLOURS]((seen.entropy[1.0][0, 0, 0] - low) / (high - low))[:3]
    assert np.allclose(block.mean((0, 1))[middle], np.array(expected)[middle], atol=1e-6)


def test_counts_labels_and_blocks_are_written():
    figure = entropy_and_stages(inspection(), title="photo $1$.jpg", note="vit, keep rate 0.7")
    written = words(figure)
    for expected in (
        "photo $1$.jpg",
        "block 3",
        "block 9",
        "Shannon entropy",
        "Rényi entropy, order 2",
        "EViT",
        "Shannon",
        "Rényi, order 2",
        "12 of 16 + 1 fused",
        "4 of 16 + 3 fused",
        "8 of 16 patches",
        "vit, keep rate 0.7",
    ):
        assert expected in written
    assert "log 16 = 2.77 nats" in " ".join(written)


def test_an_overview_shows_one_stage_of_every_image():
    seen = {f"image {seed}": inspection(seed=seed) for seed in range(4)}
    figure = overview(seen, order=1.0, stage=1, scale="shared")
    drawn = pictures(figure)
    assert len(drawn) == 4 * (2 + 3)
    for column, one in enumerate(seen.values()):
        assert np.array_equal(drawn[column * 5], one.crop / 255)
        for row, stages in enumerate(one.stages.values()):
            pixels = np.kron(stages.kept[1], np.ones((16, 16), bool))
            assert np.array_equal(drawn[column * 5 + 2 + row][pixels], one.crop[pixels] / 255)
    written = words(figure)
    assert {"image 0", "image 3", "Shannon entropy", "block 6", "EViT", "8 of 16 + 2 fused", "8 of 16 patches"} <= {
        *written
    }
    low, high = np.percentile([one.entropy[1.0][1] for one in seen.values()], (1, 99))
    assert next(axes for axes in figure.axes if not axes.images).get_ylim() == pytest.approx((low, high))
    assert {"Rényi entropy, order 2", "block 9", "4 of 16 + 3 fused", "4 of 16 patches"} <= {*words(overview(seen))}


def test_overviews_of_what_does_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        overview({})
    with pytest.raises(ValueError, match="same methods"):
        overview({"a": inspection(), "b": inspection(methods=("random",))})
    with pytest.raises(ValueError, match=r"order must be one that was measured, \[1.0, 2.0\], but got 3.0"):
        overview({"a": inspection()}, order=3.0)


# ------------------------------------------------------------------------------------------------- the layout


EVERY = ("random", "evit", "evit-drop", "shannon", "renyi-2", "renyi-inf", "renyi-0.123456789", "renyi-1.23456e-05")
LONG = "a rather long name of a photograph, taken on a day in May, with $ and _ and more of the same.jpeg"
FIGURES = {
    "usual": lambda: entropy_and_stages(inspection(), title="cat.jpg", note="model, keep rate 0.7"),
    "many methods": lambda: entropy_and_stages(inspection(EVERY), title=LONG, note="word " * 60),
    "one method": lambda: entropy_and_stages(inspection(("random",))),
    "one block": lambda: entropy_and_stages(inspection(blocks=(11,)), title=LONG),
    "many blocks": lambda: entropy_and_stages(inspection(blocks=tuple(range(0, 24, 4))), title="cat"),
    "large grid": lambda: entropy_and_stages(inspection(grid=(37, 37), patch=14), title="cat"),
    "wide": lambda: entropy_and_stages(inspection(grid=(2, 5)), title="cat"),
    "tall": lambda: entropy_and_stages(inspection(grid=(6, 3)), title="cat"),
    "constant": lambda: entropy_and_stages(inspection(spread=0.0), title="cat"),
    "overview": lambda: overview({f"image {seed}": inspection(seed=seed) for seed in range(6)}, title=LONG),
    "wide overview": lambda: overview({f"image {seed}": inspection(grid=(2, 5), seed=seed) for seed in range(2)}),
    "one image": lambda: overview({LONG: inspection(EVERY)}, title=LONG),
}


@pytest.mark.parametrize("kind", FIGURES)
def test_nothing_overlaps_or_leaves_the_page(kind):
    figure = FIGURES[kind]()
    figure.draw_without_rendering()
    page = figure.bbox
    texts = [(text.get_text(), text.get_window_extent()) for text in figure.texts]
    bars = [axes for axes in figure.axes if not axes.images]
    texts += [(f"ticks of {kind}", bar.get_tightbbox()) for bar in bars]
    images = [("a picture", axes.get_window_extent()) for axes in figure.axes if axes.images]
    for what, box in texts:
        assert box.x0 >= page.x0 - 0.5, what
        assert box.x1 <= page.x1 + 0.5, what
        assert box.y0 >= page.y0 - 0.5, what
        assert box.y1 <= page.y1 + 0.5, what
    for (one, a), (other, b) in itertools.chain(
        itertools.combinations(texts, 2), itertools.product(texts, images), itertools.combinations(images, 2)
    ):
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
        assert apart, f"{one!r} and {other!r} overlap"


def test_sizes_and_fonts_are_the_same_in_all_figures():
    widths, fonts, sizes = set(), set(), set()
    for kind in ("usual", "many blocks", "large grid", "tall", "wide overview"):
        figure = FIGURES[kind]()
        widths |= {round(axes.get_position().width * figure.get_figwidth(), 6) for axes in figure.axes if axes.images}
        fonts |= {name for text in figure.texts for name in text.get_fontfamily()}
        sizes |= {text.get_fontsize() for text in figure.texts}
    assert widths == {1.28}
    assert fonts == {"DejaVu Sans"}
    assert len(sizes) == 3


def test_the_proportions_of_the_image_are_kept():
    figure = entropy_and_stages(inspection(grid=(2, 4)))
    box = next(axes for axes in figure.axes if axes.images).get_position()
    assert box.height * figure.get_figheight() == pytest.approx(box.width * figure.get_figwidth() / 2)


# ------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_files_are_whole_and_reproducible(tmp_path, suffix):
    paths = [save_figure(entropy_and_stages(inspection()), tmp_path / "deep" / f"{name}{suffix}") for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == [f"a{suffix}", f"b{suffix}"]
    if suffix == ".png":
        from PIL import Image

        with Image.open(paths[0]) as image:
            assert image.size == tuple(int(x * 175) for x in entropy_and_stages(inspection()).get_size_inches())
    else:
        import xml.etree.ElementTree as ElementTree

        assert ElementTree.parse(paths[0]).getroot().tag.endswith("svg")


def test_metadata_is_written(tmp_path):
    from PIL import Image

    path = save_figure(entropy_and_stages(inspection()), tmp_path / "a.png", {"entropatch-source": "here"})
    with Image.open(path) as image:
        assert image.info["entropatch-source"] == "here"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("old")
    figure = entropy_and_stages(inspection())

    def fail(temporary, **_):
        temporary.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"saved as .png or .svg, but got"):
        save_figure(entropy_and_stages(inspection()), tmp_path / "a.jpg")


def test_titles_are_taken_literally_and_without_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for title in ("a $x^ b", "猫 😀", "two\nlines\tand \x07", "\\frac{", "$\\nonsense{$", "%s {0}"):
            save_figure(entropy_and_stages(inspection(), title=title, note=title), tmp_path / "a.png")
    written = words(entropy_and_stages(inspection(), title="two\nlines\tand \\frac{ $x$"))
    assert "two lines and \\frac{ $x$" in written


def test_nothing_global_is_touched(tmp_path):
    code = """
import sys
import matplotlib
from test_figures import inspection
from entropatch.figures import entropy_and_stages, save_figure
before = dict(matplotlib.rcParams)
save_figure(entropy_and_stages(inspection()), sys.argv[1])
assert dict(matplotlib.rcParams) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "DISPLAY": "", "MPLBACKEND": "TkAgg"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], check=True, env=environment)
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_title_takes_a_second_line_before_anything_of_it_is_left_out():
    title = "89 of 256 patches (35 %) after block 9: keep rate 0.7 at each of 3 stages"
    figure = overview({f"image {seed}": inspection(seed=seed) for seed in range(4)}, title=title)
    assert " ".join(text.get_text() for text in figure.texts if text.get_fontweight() == "bold") == title


def test_merged_patches_have_the_mean_colour_of_their_token_and_are_counted():
    crop = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    kept = np.zeros((1, 4, 4), bool)
    kept[0, 0, 0] = kept[0, 2, 2] = True
    stands = np.full((1, 4, 4), -1)
    stands[0, :2, :2], stands[0, 2:, 2:] = 0, 10  # two tokens of four patches each; the other patches are gone
    stages = Stages((3,), np.zeros((1, 4, 4), np.float32), kept, (16, 2), (0,), stands)
    assert count_text(stages, 0) == "2 of 16, 6 merged"
    shown = remaining(crop, kept[0], stands[0])
    assert np.array_equal(shown[:16, :16], crop[:16, :16] / 255)  # kept: as they are
    assert np.array_equal(shown[32:48, 32:48], crop[32:48, 32:48] / 255)
    gone = remaining(crop, kept[0])
    for rows, columns in ((slice(0, 32), slice(0, 32)), (slice(32, 64), slice(32, 64))):
        mean = crop[rows, columns].reshape(-1, 3).mean(0) / 255
        patch = shown[rows, columns][17:31, 17:31]  # the merged patch across, without its rim
        np.testing.assert_allclose(patch, np.broadcast_to(mean, patch.shape), atol=1e-12)
    assert np.array_equal(shown[:32, 34:], gone[:32, 34:])  # gone: faded and hatched as ever
    assert np.array_equal(remaining(crop, kept[0], np.where(kept[0], stands[0], -1)), gone)
