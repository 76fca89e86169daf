"""Training a segmenter: stopped and continued, exits first shut and then open; and what testing reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

import entropatch
from entropatch import AtExits, EarlyExit, PruneConfig, Segmenter
from entropatch.cli import app
from entropatch.cli import segment as command
from entropatch.data.loaders import data_config
from entropatch.data.mask_folders import SegmentationSet, open_mask_folder, segmentation_transform
from entropatch.data.scenes import write_digit_scenes
from entropatch.measure import count_flops
from entropatch.measure.segmentation import evaluate_segmentation
from entropatch.models.spec import ModelSpec
from entropatch.surgery import own_parameters, pruning_config
from entropatch.train import RunMismatchError, SegmentationRecipe, load_segmenter, segment
from entropatch.train.segmentation_recipe import optimizer_of

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = ModelSpec("test_vit", drop_path=0.1, arguments={"patch_size": 8, "depth": 4})
RECIPE = SegmentationRecipe(epochs=3, exit_epochs=1, batch_size=4, image_size=32, learning_rate=1e-3)
EXITS = PruneConfig(criterion=EarlyExit(threshold=0.5, context=1), schedule=AtExits())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SegmentationSet:
    return open_mask_folder(write_digit_scenes(tmp_path_factory.mktemp("scenes"), 12, 3, size=40))


def made() -> Segmenter:
    backbone = SPEC.build(0, 32, 0)
    torch.manual_seed(0)
    return Segmenter(backbone, 11)


class _StoppedError(Exception):
    pass


def test_a_stopped_run_continues_to_the_same_bits(data: SegmentationSet, tmp_path: Path, monkeypatch: Any) -> None:
    about, seen, thresholds = {"model": SPEC.to_dict()}, [], []
    settings = {"prune": EXITS, "recipe": RECIPE, "about": about, "checkpoint_every": 2}
    told: list[tuple[str, int, int, str]] = []
    outcome = segment(  # type: ignore[arg-type]
        made(),
        data,
        tmp_path / "whole",
        **settings,
        on_epoch=seen.append,
        on_step=lambda *said: told.append(said),
    )
    assert [said[:3] for said in told] == [("training", done, 9) for done in range(10)]
    assert told[-1][3].startswith("epoch 3/3, loss ")
    assert [record["leaving"] for record in seen] == [False, False, True]
    assert outcome.miou == seen[-1]["miou"]
    losses = Segmenter.losses

    def stopping(self: Segmenter, *args: Any) -> Any:
        thresholds.append(pruning_config(self).criterion.threshold)  # type: ignore[union-attr]
        if len(thresholds) in (3, 8):
            raise _StoppedError
        return losses(self, *args)

    monkeypatch.setattr(Segmenter, "losses", stopping)
    lines: list[str] = []
    for _ in range(2):
        with pytest.raises(_StoppedError):
            segment(made(), data, tmp_path / "stopped", **settings)  # type: ignore[arg-type]
    segmenter = made()
    again = segment(segmenter, data, tmp_path / "stopped", **settings, on_text=lines.append)  # type: ignore[arg-type]
    assert "continuing from" in lines[0]
    assert thresholds == [float("inf")] * 7 + [0.5] * (len(thresholds) - 7)
    assert again.miou == outcome.miou
    weights = [(tmp_path / name / "final.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "stopped/checkpoints").exists()
    monkeypatch.undo()
    assert segment(made(), data, tmp_path / "whole", **settings) == outcome  # type: ignore[arg-type]
    other = PruneConfig(criterion=EarlyExit(threshold=0.6, context=1), schedule=AtExits())
    with pytest.raises(RunMismatchError, match=r"prune\.criterion\.threshold is 0\.5 there and 0\.6 here"):
        segment(made(), data, tmp_path / "whole", **(settings | {"prune": other}))  # type: ignore[arg-type]
    loaded, images = load_segmenter(tmp_path / "whole/final.safetensors"), torch.randn(2, 3, 32, 32)
    assert pruning_config(loaded) == EXITS
    with torch.no_grad():
        assert torch.equal(loaded(images), segmenter.eval()(images))


def test_every_part_learns_and_heads_faster(data: SegmentationSet) -> None:
    segmenter: Any = entropatch.prune_(made(), EXITS)
    optimizer = optimizer_of(segmenter, RECIPE)
    peak = {id(p): group["peak"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in (*own_parameters(segmenter), *segmenter.head.parameters()):
        assert peak.pop(id(parameter)) == pytest.approx(1e-2)
    assert {*peak.values()} == {1e-3}
    assert len(peak) == len(list(entropatch.unprune_(segmenter).backbone.parameters()))  # type: ignore[union-attr]
    assert all(decay[id(p)] == (0.0 if p.ndim < 2 else 0.05) for p in segmenter.parameters())


def test_what_does_not_fit_is_refused(data: SegmentationSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pruned already"):
        segment(entropatch.prune_(made(), EXITS), data, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has 5 classes, but the data 11"):
        segment(Segmenter(SPEC.build(0, 32, 0), 5), data, tmp_path)
    with pytest.raises(ValueError, match="exit_epochs are those of a setting with EarlyExit"):
        segment(made(), data, tmp_path, recipe=RECIPE)
    with pytest.raises(ValueError, match="exit_epochs must lie in 0 … 20"):
        SegmentationRecipe(exit_epochs=21)
    with pytest.raises(ValueError, match="crop_scale"):
        SegmentationRecipe(crop_scale=(0.5, 1.5))
    assert [SegmentationRecipe(exit_epochs=n).first_exit_epoch for n in (None, 0, 20)] == [15, 20, 0]


def test_testing_counts_every_pixel_of_every_mask(data: SegmentationSet) -> None:
    segmenter = made().eval()
    settings = {"Dense": None, "exits": PruneConfig(criterion=EarlyExit(threshold=0.1), schedule=AtExits())}
    settings["half"] = PruneConfig(keep_rate=0.5)
    dense, exits, half = evaluate_segmentation(segmenter, data.test, settings, image_size=32, batch_size=2)
    config = data_config(segmenter.backbone, 32)
    right = np.zeros(11)
    union = np.zeros(11)
    flops = []
    for index in range(len(data.test)):
        image, mask = data.test.pair(index)
        seen = segmentation_transform(32, config["mean"], config["std"])(image, mask)[0][None]
        with torch.no_grad():
            large = F.interpolate(segmenter.patch_logits(seen), size=mask.shape, mode="bilinear", align_corners=False)
        guess = large.argmax(1)[0].numpy()
        assert mask.shape == (40, 40)
        for number in range(11):
            right[number] += ((guess == number) & (mask == number)).sum()
            union[number] += (((guess == number) & (mask != 255)) | (mask == number)).sum()
        copied = entropatch.prune_(made().eval(), settings["exits"])
        flops.append(count_flops(copied, seen).total / 1e9)
    assert dense["miou"] == pytest.approx(100 * (right[union > 0] / union[union > 0]).mean())
    assert (dense["to_dense"], dense["patches_left"]) == (None, None)
    assert exits["gflops"] == pytest.approx(np.mean(flops))
    assert exits["gflops"] < dense["gflops"]
    assert exits["patches_left"] < 16
    assert (half["patches_left"], half["keep_rate"]) == (2, 0.5)
    assert exits["to_dense"] == pytest.approx(exits["miou"] - dense["miou"])
    assert not entropatch.surgery.is_pruned(segmenter)


def test_the_command_trains_tests_and_writes(tmp_path: Path) -> None:
    arguments = [
        "segment",
        "--root",
        str(tmp_path / "data"),
        "--digit-scenes",
        "8,3",
        "--output",
        str(tmp_path / "run"),
    ]
    arguments += ["--model", "test_vit", "--weights", "none", "--model-arg", "patch_size=8", "--compare", "0.5"]
    arguments += ["--set", "image_size=32", "--set", "epochs=1", "--set", "batch_size=4", "--workers", "0"]
    arguments += ["--exits", "1,3", "--threshold", "0.2", "--repeats", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "run/segment.json").read_text())
    names = [record["name"] for record in found["records"]]
    assert names == ["Dense", "DToP, sure at 0.2, 5 of each class stay", "Rényi, order 2, 0.5"]
    assert all(record["images_per_second"] > 0 and record["uncounted"] == [] for record in found["records"])
    noted = json.loads((tmp_path / "run/run.json").read_text())
    assert (noted["prune"]["blocks"], noted["recipe"]["epochs"]) == ([2, 4], 1)
    assert command.segment.__doc__ is not None
    for extra, message in (
        (["--method", "evit"], "are those of dtop"),
        (["--blocks", "2,4"], "give one of the two"),
        (["--set", "epoch=2"], "--set takes epochs"),
        (["--classes", "1"], "2 … 255 classes"),
    ):
        result = CliRunner().invoke(app, [*arguments, *extra])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
