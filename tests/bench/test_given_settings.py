"""`bench --config`: a whole setting, such as a calibrated one, as a row beside the methods."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import timm
import torch
from typer.testing import CliRunner

import entropatch
from entropatch import PruneConfig
from entropatch.bench import BenchSettings, run_bench
from entropatch.cli import app
from entropatch.cli import bench as _registered  # noqa: F401
from entropatch.cli.options import named_configs
from entropatch.measure import count_flops

TINY = ("--model", "test_vit", "--image-size", "48", "--repeats", "1", "--warmup", "0", "--batch-sizes", "1")
MIXED = PruneConfig(keep_rate=(0.5, 0.8), blocks=(1, 2), order=(2.0, math.inf), reduction=("merge", "drop"))


def test_a_setting_is_a_row_at_its_own_cost():
    chosen = BenchSettings(
        model="test_vit", image_size=48, repeats=2, warmup=0, batch_sizes=(1, 2), methods=("dense", "random"),
        target_gflops=(0.0025,), configs={"calibrated": MIXED},
    )  # fmt: skip
    found = run_bench(chosen)
    assert [record["method"] for record in found.records] == ["dense", "random", "calibrated"] * 2
    model = timm.create_model("test_vit", img_size=48).eval()
    expected = count_flops(entropatch.prune_(model, MIXED), torch.randn(1, 3, 48, 48)).total / 1e9
    for row in found.records[2::3]:
        assert row["label"] == "calibrated"
        assert row["gflops"] == expected
        assert row["keep_rate"] is None
        assert row["vs_dense"] > 0
        assert row["vs_random"] is None  # nothing says which random it stands beside
    assert PruneConfig.from_json(json.dumps(found.about["configs"]["calibrated"])) == MIXED


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("evit.json",), "otherwise than a method, but got 'evit'; rename its file"),
        (("a/one.json", "b/a/one.json"), "two are called a; rename one"),
        (("missing.json",), "missing.json"),
    ],
)
def test_files_that_cannot_be_rows_are_refused(files: tuple[str, ...], message: str, tmp_path: Path):
    given: list[str] = []
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name != "missing.json":
            PruneConfig(0.5).save(path)
        given += ["--config", str(path)]
    ran = CliRunner().invoke(app, ["bench", *TINY, *given, "--output", str(tmp_path / "out")])
    assert ran.exit_code == 2
    assert message in ran.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_file_beside_methods(tmp_path: Path):
    PruneConfig(keep_rate=0.5, blocks=(1,), method="evit").save(tmp_path / "mine.json")
    command = ["bench", *TINY, "--methods", "dense,evit", "--keep-rates", "0.5"]
    command += ["--config", str(tmp_path / "mine.json"), "--output", str(tmp_path / "out")]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    rows = [line for line in ran.output.splitlines() if line.startswith("| ")]
    names = [row.split("|")[1].strip() for row in rows if not row.startswith("| -")]
    assert names == ["method", "Dense", "EViT", "mine"]


def test_files_of_one_name_are_called_by_their_folders(tmp_path: Path):
    for folder, rate in (("first", 0.5), ("second", 0.7)):
        (tmp_path / folder).mkdir()
        PruneConfig(keep_rate=rate, blocks=(1,)).save(tmp_path / folder / "calibrated.json")
    found = named_configs([tmp_path / "first/calibrated.json", tmp_path / "second/calibrated.json"])
    assert {name: config.keep_rate for name, config in found.items()} == {"first": 0.5, "second": 0.7}


def test_under_a_budget_a_method_without_a_keep_rate_says_that_it_meets_none():
    chosen = BenchSettings(
        model="test_vit", image_size=48, repeats=1, warmup=0, batch_sizes=(1,), methods=("dense", "a-vit"),
        target_gflops=(0.0025,),
    )  # fmt: skip
    dense, row = run_bench(chosen).records
    assert dense["note"] == ""
    assert row["note"].startswith("it takes no keep rate, so it meets no budget")


def test_a_setting_that_the_model_does_not_allow_fails_alone():
    far = PruneConfig(keep_rate=0.5, blocks=(99,))
    chosen = BenchSettings(
        model="test_vit", image_size=48, repeats=1, warmup=0, batch_sizes=(1,), methods=("dense",), configs={"far": far}
    )
    dense, row = run_bench(chosen).records
    assert dense["note"] == ""
    assert row["images_per_second"] is None
    assert "99" in row["note"]
