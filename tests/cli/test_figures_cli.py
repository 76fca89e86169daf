"""`entropatch figures` from end to end: every file is there, and its numbers are those of the library."""

from __future__ import annotations

import csv
import gc
import json
import math
import pickle
import weakref
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

import entropatch.cli.figures  # noqa: F401
from entropatch.cli import app
from entropatch.config import method_config
from entropatch.data.images import ImageError, cropped, image_files, load_image, to_tensor
from entropatch.gallery import Gallery, GallerySettings, accuracy_records, draw_accuracy
from entropatch.gallery.images import _parts
from entropatch.look.inspection import entropy_maps, pruning_stages
from entropatch.look.statistics import RunningStatistics, batch_statistics, rank_correlation
from entropatch.measure import environment

ORDERS = (1.0, math.inf)


@pytest.fixture
def network(checkpoint):
    model = timm.create_model("test_vit", num_classes=0)
    state = safetensors.torch.load_file(checkpoint)
    model.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    return model.eval()


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """Few dots, since nothing here looks at a picture closely."""
    monkeypatch.setattr("entropatch.figures.saving.DPI", 40)


@pytest.fixture
def run(tmp_path, checkpoint):
    def invoke(*arguments, model=True):
        known = ["--model", "test_vit", "--weights", str(checkpoint)] if model else []
        return CliRunner().invoke(app, ["figures", *known, "--output", str(tmp_path / "out"), *map(str, arguments)])

    return invoke


@pytest.fixture
def images(tmp_path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "ab":
        pixels = np.random.default_rng(ord(name)).integers(0, 255, (120, 100, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return [folder / "a.png", folder / "b.png"]


PER_IMAGE = {f"{stem}.{suffix}" for stem in ("entropy-{}", "stages-{}-0.5") for suffix in ("png", "svg", "npz")}
OF_ALL = {f"entropy-histograms.{suffix}" for suffix in ("png", "svg", "npz")}
OF_ALL |= {f"entropy-distance.{suffix}" for suffix in ("png", "svg", "md", "csv", "json")}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_figure_and_the_numbers_behind_it(run, images, network, tmp_path):
    result = run(*images, "--orders", "1,inf", "--keep-rates", "0.5", "--methods", "evit,shannon,renyi-inf")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert names(out) == {name.format(image) for name in PER_IMAGE for image in "ab"} | OF_ALL
    assert f"20 files written to {out}" in result.stdout
    statistics = RunningStatistics(ORDERS)
    for path in images:
        tensor = to_tensor(load_image(path), network)[None]
        statistics.add(batch_statistics(network, tensor, ORDERS))
        with np.load(out / f"entropy-{path.stem}.npz") as data:
            assert data["orders"].tolist() == list(ORDERS)
            assert np.array_equal(data["entropy"], entropy_maps(network, tensor, ORDERS, range(6))[0])
            assert np.array_equal(data["crop"], np.asarray(cropped(load_image(path), network)))
        with np.load(out / f"stages-{path.stem}-0.5.npz") as data:
            assert data["methods"].tolist() == ["evit", "shannon", "renyi-inf"]
            for place, method in enumerate(data["methods"].tolist()):
                expected = pruning_stages(network, tensor, method_config(method, 0.5))[0]
                assert np.array_equal(data["kept"][place], expected.kept)
                assert np.array_equal(data["scores"][place], expected.scores, equal_nan=True)
                assert tuple(data["tokens"][place]) == expected.tokens
                assert tuple(data["blocks"]) == expected.blocks
    with np.load(out / "entropy-histograms.npz") as data:
        assert np.array_equal(data["counts"], statistics.counts)
        assert np.array_equal(data["edges"], statistics.edges)
    with (out / "entropy-distance.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["block"]), int(row["head"])) for row in rows] == list(np.ndindex(*statistics.distance.shape))
    assert [float(row["distance_patches"]) for row in rows] == statistics.distance.ravel().tolist()
    assert [float(row["entropy_inf"]) for row in rows] == statistics.entropy[1].ravel().tolist()
    about = json.loads((out / "entropy-distance.json").read_text())["about"]
    assert about["images"] == 2
    name = "Spearman's rank correlation of the heads' entropy and attention distance (-1 … 1), order 1"
    assert about[name] == rank_correlation(statistics.entropy[0], statistics.distance)
    assert about["hardware"] == environment()["hardware"]
    assert about["date"][:10] in {datetime.now(timezone.utc).date().isoformat(), environment()["date"][:10]}
    assert about["model"] == "test_vit"


def test_many_methods_are_several_pictures_with_the_same_blocks(run, images, tmp_path):
    names_of = ["tome", "random", *(f"renyi-{order}" for order in range(2, 16))]
    result = run(images[0], "--keep-rates", "0.5", "--methods", ",".join(names_of[:9]))
    assert result.exit_code == 0, result.output
    parts = [f"stages-a-0.5-part{part}" for part in (1, 2)]
    assert {f"{part}.{suffix}" for part in parts for suffix in ("png", "svg", "npz")} <= names(tmp_path / "out")
    assert "stages-a-0.5.png" not in names(tmp_path / "out")
    seen, blocks = [], []
    for part in parts:
        with np.load(tmp_path / "out" / f"{part}.npz") as data:
            seen.append(data["methods"].tolist())
            blocks.append(data["blocks"].tolist())
            assert len(data["kept"]) == len(seen[-1])
    assert seen == [names_of[:4], names_of[4:9]]
    assert blocks[0] == blocks[1]  # ToMe's, which merges in every block
    assert len(blocks[0]) > 3
    for count in (1, 9, 1):  # in the same folder: no picture of a run before is left
        assert run(images[0], "--keep-rates", "0.5", "--methods", ",".join(names_of[:count])).exit_code == 0
        stages = {name for name in names(tmp_path / "out") if name.startswith("stages-") and name.endswith(".png")}
        assert stages == ({"stages-a-0.5.png"} if count == 1 else {f"{part}.png" for part in parts})
    assert _parts(names_of) == [names_of[:8], names_of[8:]]
    assert _parts(names_of[:8]) == [names_of[:8]]


@pytest.mark.parametrize("damaged", ["c.png", "0.png"])  # after those that are drawn, and before
def test_a_folder_fewer_pictures_and_a_damaged_image(run, images, tmp_path, damaged):
    (images[0].parent / damaged).write_bytes(b"no picture")
    (images[0].parent / "notes.txt").write_text("no picture either")
    result = run(images[0].parent, "--pictures", 1, "--keep-rates", "0.5", "--methods", "random", "--orders", "2")
    assert result.exit_code == 1
    assert f"{damaged}: not an image file" in result.stderr
    assert "notes" not in result.stderr
    assert names(tmp_path / "out") == {name.format("a") for name in PER_IMAGE} | OF_ALL
    assert json.loads((tmp_path / "out" / "entropy-distance.json").read_text())["about"]["images"] == 2


def test_images_of_one_name_have_files_of_their_own(network, tmp_path):
    gallery = Gallery(network, tmp_path, GallerySettings((2.0,), ("random",)))
    picture = Image.new("RGB", (50, 50), (9, 90, 200))
    first, second = gallery.add("a/b", picture), gallery.add("a/b", picture)
    assert [path.stem for path in (first[0], second[0])] == ["entropy-a_b", "entropy-a_b-2"]


def test_nothing_of_an_image_stays_when_the_next_is_drawn(network, tmp_path, monkeypatch):
    alive = []

    def noted(*arguments):
        batch = batch_statistics(*arguments)
        alive.extend([weakref.ref(batch), weakref.ref(batch.maps)])
        return batch

    monkeypatch.setattr("entropatch.gallery.images.batch_statistics", noted)
    gallery = Gallery(network, tmp_path, GallerySettings((2.0,), ("random",)))
    sizes = []
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 255, (80, 80, 3)).astype(np.uint8)
        image = Image.fromarray(pixels)
        alive.append(weakref.ref(image))
        gallery.add(f"image {seed}", image, draw=seed < 2)
        del image
        gc.collect()
        sizes.append(len(pickle.dumps(gallery.statistics)))
    assert len(alive) == 12
    assert [reference() for reference in alive] == [None] * 12
    assert sizes == sizes[:1] * 4


def test_methods_a_model_does_not_allow():
    settings = GallerySettings((1.0, 2.0))
    assert settings.methods == ("evit", "shannon", "renyi-2")
    with pytest.raises(ValueError, match="a method is one of"):
        GallerySettings(methods=("nonsense",))
    with pytest.raises(ValueError, match="one entry at least"):
        GallerySettings(orders=())
    with pytest.raises(ValueError, match="keep_rate"):
        GallerySettings(keep_rates=(0.0,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give images to look at, --records to draw, or both"),
        (("{image}", "--orders", "0"), "order must be greater than 0"),
        (("{image}", "--methods", "nonsense"), "a method is one of"),
        (("{image}", "--keep-rates", "1.5"), "keep_rate must lie in (0, 1]"),
        (("{image}", "--blocks", "3,99"), "blocks must lie in 0 … 5"),
        (("--records", "{image}"), "cannot be read as JSON"),
        (("--records", "/no/such/file"), "cannot be read as JSON"),
    ],
)
def test_mistakes_end_in_one_line(run, images, arguments, message):
    result = run(*(argument.format(image=images[0]) for argument in arguments))
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_files_of_folders(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "d.png").mkdir()
    assert image_files([tmp_path, "elsewhere.png"]) == [tmp_path / "a.JPG", tmp_path / "b.png", Path("elsewhere.png")]
    with pytest.raises(ImageError, match="a folder without image files"):
        image_files([tmp_path / "d.png"])


# ------------------------------------------------------------------------------------------ accuracy from records

EVALUATED = [
    {"name": "dense", "keep_rate": None, "top1": 90.0, "gflops": 4.6, "images_per_second": 30.0},
    {"name": "Shannon, 0.7", "keep_rate": 0.7, "top1": 88.0, "gflops": 3.0, "images_per_second": 45.0},
    {"name": "Shannon, 0.5", "keep_rate": 0.5, "top1": 86.0, "gflops": 2.3, "images_per_second": 60.0},
    {"name": "mine", "keep_rate": [0.9, 0.5], "top1": 87.0, "gflops": 2.5},
]


def test_records_of_evaluate_and_of_the_demo_become_points():
    points = accuracy_records({"about": {}, "records": EVALUATED})
    assert [point["label"] for point in points] == ["dense", "Shannon", "Shannon", "mine"]
    assert points[3] == {"label": "mine", "keep_rate": [0.9, 0.5], "top1": 87.0, "gflops": 2.5}
    demo = {"method": "evit", "label": "EViT", "keep_rate": 0.5, "accuracy": 93.0, "gflops": 2.0, "p50_ms": 3.0}
    assert accuracy_records([demo]) == [{"label": "EViT", "keep_rate": 0.5, "top1": 93.0, "gflops": 2.0}]
    with pytest.raises(ValueError, match=r'x.json must hold \{"records"'):
        accuracy_records({"epochs": 3}, "x.json")
    with pytest.raises(ValueError, match="none of 1 has either"):
        accuracy_records([{"images_per_second": 3.0}])


def test_accuracy_figures_from_the_command_line(run, tmp_path):
    (tmp_path / "evaluate.json").write_text(json.dumps({"about": {}, "records": EVALUATED}))
    result = run("--records", tmp_path / "evaluate.json", model=False)
    assert result.exit_code == 0, result.output
    stems = ("accuracy-gflops", "accuracy-images-per-second")
    figures = {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")}
    assert names(tmp_path / "out") == figures | {"accuracy.md", "accuracy.csv", "accuracy.json"}
    data = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert data["records"] == accuracy_records(EVALUATED)


def test_points_keep_the_machine_they_were_measured_on(run, tmp_path):
    for name, hardware in (("a", "one GPU"), ("b", "another")):
        about = {"hardware": hardware, "torch": "2.15", "date": "2026-02-01"}
        (tmp_path / f"{name}.json").write_text(json.dumps({"about": about, "records": EVALUATED}))
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert run("--records", a, "--records", b, model=False).exit_code == 0
    about = json.loads((tmp_path / "out" / "accuracy.json").read_text())["about"]
    assert about["hardware"] == f"{a}: one GPU; {b}: another"
    assert (about["torch"], about["date"], about["measured in"]) == ("2.15", "2026-02-01", f"{a}, {b}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top1", "80"),
        ("top1", 10**400),
        ("gflops", []),
        ("keep_rate", "0.5"),
        ("keep_rate", [0.5, {}]),
        ("gflops", True),
    ],
)
def test_what_is_no_number_is_named(run, tmp_path, key, value):
    (tmp_path / "x.json").write_text(json.dumps({"about": {}, "records": [*EVALUATED, {**EVALUATED[0], key: value}]}))
    result = run("--records", tmp_path / "x.json", model=False)
    assert result.exit_code == 2
    assert f"x.json: {key} must be a number" in result.stderr


def test_an_axis_that_was_not_measured_has_no_figure(tmp_path):
    points = [{key: value for key, value in row.items() if key != "images_per_second"} for row in EVALUATED]
    draw_accuracy(accuracy_records(points), tmp_path)
    assert not [name for name in names(tmp_path) if "images" in name]
    with pytest.raises(ValueError, match="must hold top1 and gflops or images_per_second"):
        draw_accuracy([{"label": "a", "keep_rate": 0.5, "top1": 3.0}], tmp_path)
