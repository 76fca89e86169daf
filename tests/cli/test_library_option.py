"""`--library`: models of torchvision and OpenCLIP through every command that takes a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_libraries import NAME, known_to_torchvision, open_clip_folder
from typer.testing import CliRunner

import entropatch
from entropatch import PruneConfig, Renyi
from entropatch.app import Explorer, Setting, panels
from entropatch.cli import COMMANDS, app
from entropatch.data.images import cropped, load_image
from entropatch.export import about_file
from entropatch.models.pretrained import load_model
from entropatch.train import ModelSpec, read_about, save_weights

for module in ("accelerate", "fvcore", "matplotlib", "optuna", "safetensors", "scipy", "sklearn"):
    pytest.importorskip(module)
for command in COMMANDS:
    import_module(f"entropatch.cli.{command}")

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ("--test-limit", 20, "--device", "cpu", "--workers", 0, "--repeats", 1)
DIGITS = {"data": {"name": "digits", "root": None, "options": {}}, "classes": 10, "image_size": 48}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a picture and an OpenCLIP model; torchvision knows a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("entropatch.figures.saving.DPI", 40)
    pixels = np.random.default_rng(0).integers(0, 255, (90, 130, 4)).astype(np.uint8)
    pixels[..., 3] = 0
    pixels[30:70, 40:90, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    open_clip_folder(tmp_path / "clip")
    with known_to_torchvision(tmp_path / "hub"):
        yield tmp_path


def run(*arguments: Any, status: int = 0) -> Any:
    with torch.random.fork_rng():
        shown = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert shown.exit_code == status, shown.output
    return shown


def records(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["records"]


TORCHVISION = ("--library", "torchvision", "--model", NAME)
OPEN_CLIP = ("--library", "open_clip", "--model", "clip")


@pytest.mark.parametrize("which", [TORCHVISION, OPEN_CLIP], ids=["torchvision", "open_clip"])
def test_visualize(here: Path, which: tuple[str, ...]) -> None:
    shown = run("visualize", "picture.png", *which, "--method", "evit,shannon", "--output", "pictures")
    assert "1 of 1 images drawn" in shown.output
    assert "weights: TinyWeights.FIRST (cached)" in shown.stderr or "weights: the folder clip" in shown.stderr
    with Image.open(here / "pictures/picture.png") as picture:
        assert json.loads(picture.text["entropatch-about"])["model"] in (NAME, "clip")


def test_figures(here: Path) -> None:
    run("figures", "picture.png", *OPEN_CLIP, "--orders", "1", "--methods", "evit", "--pictures", 0, "--output", "out")
    assert len(list((here / "out").glob("**/*.png"))) >= 2


def test_check_looks_at_the_masks_as_the_model_sees_the_picture(here: Path) -> None:
    shown = run("check", "picture.png", "--alpha", *TORCHVISION, "--orders", "2", "--output", "out")
    assert "AUROC" in (here / "out/check.md").read_text()
    assert "| 3" in shown.output
    model, _ = load_model(NAME, library="torchvision")
    assert cropped(load_image(here / "picture.png"), model).size == (48, 48)


def test_bench(here: Path) -> None:
    rows = ("--methods", "dense,renyi-2,tome", "--keep-rates", 0.5, "--batch-sizes", 1, "--repeats", 1, "--warmup", 0)
    run("bench", *TORCHVISION, "--image-size", 64, *rows, "--output", "out")
    dense, renyi, tome = records(here / "out/bench.json")
    assert max(renyi["gflops"], tome["gflops"]) < dense["gflops"]
    assert all(row["images_per_second"] > 0 and not row["note"] for row in (dense, renyi, tome))


def test_evaluate_a_file_of_torchvision_and_its_own_classes(here: Path) -> None:
    spec = ModelSpec(NAME, "pretrained", library="torchvision")
    save_weights(spec.build(10, 48), here / "run.safetensors", {"model": spec.to_dict(), **DIGITS})
    run("evaluate", "--weights", "run.safetensors", *QUICK, "--speed-batch-size", 0, "--methods", "dense,evit",
        "--output", "out")  # fmt: skip
    dense, evit = records(here / "out/evaluate.json")
    assert evit["gflops"] < dense["gflops"]
    assert dense["uncounted"] == []
    shown = run("evaluate", *TORCHVISION, "--data", "digits", *QUICK, status=1)
    assert "a classifier for 3 classes (cat, …), but the data set has 10 classes" in " ".join(shown.output.split())


def test_evaluate_open_clip_by_the_names_of_the_classes(here: Path) -> None:
    rows = ("--methods", "dense,renyi-2", "--speed-batch-size", 0)
    shown = run("evaluate", *OPEN_CLIP, "--data", "digits", *QUICK, *rows, "--output", "out")
    dense, renyi = records(here / "out/evaluate.json")
    assert renyi["gflops"] < dense["gflops"]
    assert "embedding the names of 10 classes" in shown.stderr
    assert json.loads((here / "out/evaluate.json").read_text())["about"]["image_size"] == 48


@pytest.mark.parametrize("which", [TORCHVISION, pytest.param(OPEN_CLIP, marks=pytest.mark.slow)], ids=" ".join)
def test_finetune_and_evaluate_what_it_wrote(here: Path, which: tuple[str, ...]) -> None:
    small = ("--data", "digits", "--train-limit", 32, "--test-limit", 20, "--device", "cpu", "--workers", 0)
    small += ("--set", "epochs=1", "--set", "batch-size=16", "--set", "image_size=48", "--no-tensorboard")
    checkpointing = ("--gradient-checkpointing",)
    run(
        "finetune",
        *which,
        *small,
        "--method",
        "evit",
        *(checkpointing if which is OPEN_CLIP else ()),
        "--output",
        "run",
    )
    about = read_about(here / "run/final.safetensors")
    assert about["model"]["library"] == which[1]
    run("evaluate", "--weights", "run/final.safetensors", *QUICK, "--speed-batch-size", 0, "--output", "out")
    dense, trained = records(here / "out/evaluate.json")
    assert trained["name"] == "as trained: EViT, 0.7"
    assert trained["gflops"] < dense["gflops"]
    if which is TORCHVISION:
        shown = run("finetune", *which, *small, *checkpointing, "--output", "other", status=1)
        assert "VisionTransformer has no gradient checkpointing" in " ".join(shown.output.split())


@pytest.mark.slow
def test_search_without_training(here: Path) -> None:
    run("search", *OPEN_CLIP, "--data", "digits", *QUICK, "--set", "image_size=48", "--methods", "dense,renyi-2",
        "--keep-rates", "0.5", "--speed-batch-size", 1, "--output", "study")  # fmt: skip
    found = {record["method"]: record["gflops"] for record in records(here / "study/search.json")}
    assert found["renyi-2"] < found["dense"]


def test_the_app_shows_the_program_that_loads_the_model(here: Path) -> None:
    explorer = Explorer(lambda name: load_model(name, library="torchvision"), {}, repeats=1)
    seen = explorer.see(NAME, str(here / "picture.png"), Setting("renyi-2", 0.5))
    assert seen.stages.tokens == (9, 5, 3, 2)
    assert seen.gflops < seen.dense_gflops
    html = panels.use(
        NAME, explorer.crop(NAME, str(here / "picture.png")), Setting("renyi-2", 0.5), explorer.code(NAME)
    )
    program = panels.as_python(NAME, (48, 48), Setting("renyi-2", 0.5).pruning(), explorer.code(NAME))
    assert "import torchvision" in html
    namespace: dict[str, Any] = {}
    exec(program, namespace)
    with entropatch.trace(namespace["model"]) as trace:
        namespace["model"](torch.zeros(1, 3, 48, 48))
    assert trace.counts == [9, 5, 3, 2]
    shown = run("app", "--library", "open_clip", status=1)
    assert "--library open_clip needs --model" in shown.output


@pytest.mark.parametrize("which", [TORCHVISION, OPEN_CLIP], ids=" ".join)
def test_what_is_exported(here: Path, which: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(sys.modules["entropatch.export"], "export", lambda *parts, **options: given.extend(parts))
    run("export", "model.pt2", *which, "--images", "picture.png", "--keep-rate", "0.5")
    model, images, path = given
    assert (images.shape, path) == ((1, 3, 48, 48), Path("model.pt2"))
    assert entropatch.pruning_config(model).keep_rate == 0.5
    with torch.no_grad(), entropatch.trace(model) as trace:
        model(images)
    assert trace.counts == [9, 5, 3, 2]


@pytest.mark.slow
@pytest.mark.parametrize("which", [TORCHVISION, OPEN_CLIP], ids=" ".join)
def test_export(here: Path, which: tuple[str, ...]) -> None:
    run("export", "model.pt2", *which, "--images", "picture.png", "--keep-rate", "0.5")
    about = about_file(here / "model.pt2")
    assert about["model"] == which[3]
    assert about["input"] == ["batch", 3, 48, 48]
    mean = (0.485, 0.456, 0.406) if which is TORCHVISION else (0.4, 0.5, 0.6)
    assert about["preprocessing"]["mean"] == pytest.approx(mean)


def test_calibrate(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entropatch.calibration.calibrating.offered_criteria", lambda: [Renyi(1.0)])
    monkeypatch.setattr("entropatch.calibration.comparing.compared_methods", lambda: ["evit"])
    monkeypatch.setattr("entropatch.calibration.comparing.spread_within", lambda *_: {})
    (here / "pictures").mkdir()
    for i in range(9):
        with Image.open(here / "picture.png") as picture:
            picture.convert("RGB").rotate(20 * i).save(here / f"pictures/{i}.png")
    run("calibrate", "pictures", *TORCHVISION, "--blocks", "1", "--effort", 0, "--drop", 0.003, "--output", "out")
    assert PruneConfig.load(here / "out/calibrated.json").blocks == (1,)


COMMANDS_WITH_A_LIBRARY = (
    "visualize", "figures", "check", "app", "bench", "evaluate", "finetune", "search", "export", "calibrate"
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS_WITH_A_LIBRARY)
def test_a_library_that_is_not_known(here: Path, command: str) -> None:
    before = {"visualize": ["picture.png"], "figures": ["picture.png"], "check": ["picture.png", "--alpha"]}
    before |= {"export": ["model.pt2"], "calibrate": ["picture.png", "--gflops", "1"]}
    after = {name: ["--data", "digits"] for name in ("evaluate", "finetune", "search")}
    after["finetune"] += ["--output", "run"]
    after["search"] += ["--output", "run"]
    result = CliRunner().invoke(
        app, [command, *before.get(command, []), "--library", "keras", "--model", "x", *after.get(command, [])]
    )
    assert result.exit_code in (1, 2)
    assert "the library must be one of timm, transformers, torchvision, open_clip, but got 'keras'" in " ".join(
        result.output.split()
    )
