"""The benchmark: its records, its ratios, rows that fail, the command, and Table 3."""

from __future__ import annotations

import csv
import json
import random
import re
import statistics
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import entropatch
import entropatch.bench.benchmark as bench_run
from entropatch.bench import BenchSettings, Variant, bar_sentences, bench_table, run_bench, table_3
from entropatch.bench.bar import reaches
from entropatch.bench.rows import Row, records_of
from entropatch.cli import app
from entropatch.cli import bench as _registered  # noqa: F401
from entropatch.measure import Timing, count_flops
from entropatch.measure.budget import BudgetError

TINY = {"model": "test_vit", "image_size": 48, "repeats": 2, "warmup": 1}
SIGLIP = {"model": "vit_base_patch16_siglip_224", "image_size": 32, "repeats": 1, "warmup": 0}


def settings(**changes: Any) -> BenchSettings:
    return BenchSettings(**(TINY | {"keep_rates": (0.5,), "batch_sizes": (1,)} | changes))


@pytest.fixture(scope="module")
def result() -> Any:
    steps: list[None] = []
    methods = ("dense", "random", "evit", "shannon", "renyi-inf")
    chosen = settings(methods=methods, keep_rates=(0.7, 0.5), batch_sizes=(1, 2))
    made = run_bench(chosen, lambda: steps.append(None))
    return SimpleNamespace(
        records=made.records, about=made.about, failed=made.failed, steps=len(steps), settings=chosen
    )


# ------------------------------------------------------------------------------------------------------- records


def test_a_row_for_every_method_rate_and_batch_size(result):
    rows = [(r["batch_size"], r["method"], r["keep_rate"]) for r in result.records]
    methods = ["random", "evit", "shannon", "renyi-inf"]
    group = [("dense", None), *[(method, rate) for method in methods for rate in (0.7, 0.5)]]
    assert rows == [(batch, *row) for batch in (1, 2) for row in group]
    assert not result.failed
    assert all(r["note"] == "" for r in result.records)
    assert result.steps == result.settings.steps() == 2 * 9 * (1 + 1 + 2)


def test_every_row_is_the_model_it_says(result):
    """GFLOPs against a model made and pruned here."""
    import timm

    images = torch.randn(1, 3, 48, 48)
    for method, criterion, reduction in (
        ("random", entropatch.Random(), "drop"),
        ("evit", entropatch.ClassAttention(), "fuse"),
        ("shannon", entropatch.Renyi(1.0), "drop"),
        ("renyi-inf", entropatch.Renyi(float("inf")), "drop"),
    ):
        model = timm.create_model("test_vit", img_size=48)
        dense = count_flops(model, images).total / 1e9
        entropatch.prune_(model, keep_rate=0.5, criterion=criterion, reduction=reduction)
        expected = count_flops(model, images).total / 1e9
        assert [r["gflops"] for r in result.records if (r["method"], r["keep_rate"]) == (method, 0.5)] == [expected] * 2
        assert expected < dense == result.records[0]["gflops"]


def test_figures_agree_with_each_other(result):
    for r in result.records:
        assert r["images_per_second"] == pytest.approx(r["batch_size"] * 1000 / r["p50_ms"])
        assert r["p95_ms"] >= r["p50_ms"] > 0
        assert r["peak_memory_mib"] > 0
        same_batch = [other for other in result.records if other["batch_size"] == r["batch_size"]]
        dense = next(other for other in same_batch if other["method"] == "dense")
        assert r["vs_dense"] > 0
        assert (r["vs_dense"] == 1) == (r is dense)
        assert (r["vs_random"] is None) == (r is dense)
        assert (r["rounds"], r["vs_dense_low"], r["vs_random_high"]) == (2, None, None)  # two rounds give no interval
        assert "reaches" not in r


def test_the_backend_is_visible(result):
    kernels = pytest.importorskip("entropatch.kernels")
    auto = kernels.choose_backend("auto", torch.empty(1, 1, 9, 64))
    for r in result.records:
        assert r["backend"] == (auto if r["method"] in ("shannon", "renyi-inf") else None)
    chosen = run_bench(settings(methods=("random", "renyi-2"), backend="reference", repeats=1, warmup=0))
    assert [r["backend"] for r in chosen.records] == [None, "reference"]


def test_what_holds_for_all_rows_is_recorded(result):
    assert result.about["model"] == "test_vit"
    assert result.about["weights"].startswith("random")
    assert {"hardware", "threads", "torch", "timm", "omp_wait_policy", "dtype", "repeats", "date"} <= set(result.about)
    assert "load_average_before" in result.about


def test_no_ratio_without_its_base():
    records = run_bench(settings(methods=("renyi-2",), repeats=1, warmup=0)).records
    assert [(r["vs_dense"], r["vs_random"]) for r in records] == [(None, None)]


def test_ratios_come_from_the_same_batch_and_rate(monkeypatch):
    """Times made up so that every row differs: the ratios can be worked out by hand."""
    speeds = iter([10.0, 20.0, 30.0, 5.0, 6.0, 40.0, 80.0, 90.0, 8.0, 9.0])

    def invented(runs: dict, batch_size: int, **_: Any) -> dict[str, Timing]:
        return {name: Timing(next(speeds), 1.0, 1.0, 1) for name in runs}

    monkeypatch.setattr(bench_run, "time_interleaved", invented)
    methods, rates = ("dense", "random", "renyi-2"), (0.7, 0.5)
    records = run_bench(settings(methods=methods, keep_rates=rates, batch_sizes=(1, 2))).records
    assert [(r["vs_dense"], r["vs_random"]) for r in records] == [
        (1, None), (2, 1), (3, 1), (0.5, 0.25), (0.6, 0.2),
        (1, None), (2, 1), (2.25, 1), (0.2, 0.1), (0.225, 0.1),
    ]  # fmt: skip


def timed(*seconds: float) -> Timing:
    p50 = statistics.median(seconds)
    return Timing(1 / p50, 1e3 * p50, 1e3 * max(seconds), len(seconds), seconds)


def test_ratios_are_medians_of_the_rounds_with_intervals_and_the_bar_is_answered():
    drift = [1.0, 2.0, 1.0, 3.0, 1.0, 2.0, 1.0, 1.0]  # of all rows alike

    def row(method: str, *shares: float) -> Row:
        times = [d / share for d, share in zip(drift, shares * 8, strict=False)]
        return Row(Variant(method, None if method == "dense" else 0.7), 16, timing=timed(*times))

    rows = [
        row("dense", 0.5),
        row("random", 1.0),
        row("evit", 0.99, 0.98),
        row("shannon", 0.95, 0.96),
        row("renyi-2", 0.96, 0.99),
    ]
    rows.append(Row(Variant("renyi-inf", 0.7), 16, notes=["out of memory"]))
    records = records_of(rows, 0.97)
    found = {r["method"]: r for r in records}
    assert [found["evit"][key] for key in ("vs_random", "vs_random_low", "vs_random_high")] == pytest.approx(
        [0.985, 0.98, 0.99]  # of eight, the lowest and the highest
    )
    assert found["evit"]["vs_dense_low"] == pytest.approx(1.96)
    assert [r["reaches"] for r in records] == [None, None, "yes", "no", "unknown", None]
    assert (found["random"]["vs_random"], found["random"]["vs_random_low"]) == (1, None)
    assert found["renyi-inf"]["vs_random"] is None
    (line,) = bar_sentences(records, 0.97)
    assert line == (
        "At least 0.97 of the images/s of random, batch 16? Yes: EViT 0.7 (0.980 … 0.990); "
        "no: Shannon 0.7 (0.950 … 0.960); unknown: Rényi, order 2 0.7 (0.960 … 0.990)."
    )
    assert reaches(None, None, 0.97) == "unknown"
    shown = dict(zip(*(rows_of(bench_table(records))[place][7:] for place in (0, 3)), strict=True))
    assert (shown["× dense"], shown["× random"], shown["reached"]) == ("1.97", "0.985", "yes")
    assert "1.960 … 1.980" in bench_table(records)
    assert "reached" not in bench_table(records_of(rows))


def test_rounds_are_added_until_the_ratios_to_random_are_sure(monkeypatch):
    """Times made up: the ratio wobbles by 5 %, so few rounds do not do."""
    draw = random.Random(1)
    monkeypatch.setattr("entropatch.measure.timing._timed", lambda run, device: 1.0 + 0.1 * draw.random())
    asked = {"methods": ("dense", "random", "evit"), "repeats": 6, "warmup": 0}
    records = run_bench(settings(**asked, until_interval=0.02, most_rounds=300, bar=0.9)).records
    assert 6 < records[0]["rounds"] < 300
    (evit,) = (r for r in records if r["method"] == "evit")
    assert max(evit["vs_random_high"] / evit["vs_random"] - 1, 1 - evit["vs_random_low"] / evit["vs_random"]) <= 0.02
    assert evit["reaches"] == "yes"
    assert run_bench(settings(**asked, until_interval=0.0001, most_rounds=9)).records[0]["rounds"] == 9


def test_the_rows_measured_unasked_are_those_of_the_registry_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(entropatch.methods.METHODS, "_methods", dict(entropatch.methods.METHODS._methods))
    own = entropatch.Method("own", "Own", "", schedule=entropatch.CumulativeImportance(share=0.8), rank=15)
    entropatch.register_method(own)
    chosen = BenchSettings(
        model="test_vit", image_size=48, keep_rates=(0.7, 0.5), batch_sizes=(1,), repeats=1, warmup=0
    )
    records = run_bench(chosen).records
    expected = ["dense", "random", "own", "evit", "tome", "shannon", "renyi-2", "renyi-inf"]
    assert list(dict.fromkeys(r["method"] for r in records)) == expected
    assert [r["keep_rate"] for r in records if r["method"] in ("dense", "own")] == [None, None]
    assert all(r["gflops"] and r["images_per_second"] for r in records)
    assert all(("random images" in r["note"]) == (r["method"] == "own") for r in records)


def test_weights_are_shared_and_the_dense_row_stays_dense():
    import timm

    from entropatch.measure.variants import Variant, pruned_copy

    model = timm.create_model("test_vit", img_size=48)
    pruned = pruned_copy(model, Variant("renyi-2", 0.5).config())
    assert {id(p) for p in pruned.parameters()} == {id(p) for p in model.parameters()}
    assert type(model).__name__ == "VisionTransformer"
    with pytest.raises(ValueError, match="not pruned"):
        entropatch.pruning_config(model)
    assert entropatch.pruning_config(pruned).keep_rate == 0.5


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"dtype": "bfloat16", "amp": True}])
def test_half_precision(changes, monkeypatch):
    seen: list[tuple[torch.dtype, bool]] = []

    def look(run: Any, device: str) -> int:
        with torch.inference_mode():
            seen.append((run().dtype, torch.is_autocast_enabled("cpu")))
        return 1

    monkeypatch.setattr(bench_run, "peak_memory", look)
    assert not run_bench(settings(methods=("dense", "renyi-2"), repeats=1, warmup=0, **changes)).failed
    dtype = getattr(torch, changes["dtype"])
    assert seen == [(dtype, False)] * 2


# ------------------------------------------------------------------------------------------------ rows that fail


def test_a_method_the_model_cannot_have_fails_alone():
    result = run_bench(settings(**SIGLIP, methods=("dense", "evit", "random")))
    assert [r["method"] for r in result.failed] == ["evit"]
    assert "UnsupportedModelError" in result.failed[0]["note"]
    assert "class token" in result.failed[0]["note"]
    assert all(r["images_per_second"] for r in result.records if r["method"] != "evit")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems grant any amount of memory")
def test_a_batch_that_does_not_fit_fails_alone():
    records = run_bench(settings(methods=("dense", "random"), batch_sizes=(10**9, 1))).records
    assert [(r["batch_size"], r["note"]) for r in records if r["note"]] == [(10**9, "out of memory")] * 2
    assert [r["images_per_second"] is None for r in records] == [True, True, False, False]


def test_a_row_that_fails_while_it_is_timed_fails_alone(monkeypatch):
    """It passed the memory measurement; the others are timed anew without it."""
    calls: dict[int, int] = {}
    real = bench_run._probe

    def fragile(row: Any, model: nn.Module, *rest: Any) -> None:
        real(row, model, *rest)
        if row.variant.method == "random":
            run = row.run

            def sometimes() -> object:
                calls[0] = calls.get(0, 0) + 1
                if calls[0] == 2:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
                return run()

            row.run = sometimes

    monkeypatch.setattr(bench_run, "_probe", fragile)
    result = run_bench(settings(methods=("dense", "random", "renyi-2")))
    assert [(r["method"], r["note"]) for r in result.failed] == [("random", "out of memory")]
    assert [r["images_per_second"] is not None for r in result.records] == [True, False, True]


def test_uncounted_operators_stand_in_the_note(monkeypatch):
    monkeypatch.setattr(bench_run, "count_flops", lambda *_: SimpleNamespace(total=1, uncounted={"a::b": 1, "c::d": 2}))
    records = run_bench(settings(methods=("dense",), repeats=1, warmup=0)).records
    assert records[0]["note"] == "GFLOPs leave out a::b, c::d"


def test_gflops_that_cannot_be_counted_do_not_stop_the_row(monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("tracer\nlong story")

    monkeypatch.setattr(bench_run, "count_flops", broken)
    (record,) = run_bench(settings(methods=("dense",), repeats=1, warmup=0)).records
    assert record["note"] == "GFLOPs not counted: RuntimeError: tracer"
    assert record["gflops"] is None
    assert record["images_per_second"] > 0


# ------------------------------------------------------------------------------------------------------ compiled


def test_every_compiled_row_has_graphs_of_its_own(monkeypatch):
    """More rows than Dynamo's limit of recompilations: none falls back to eager, none sees the others' guards."""
    from torch._dynamo.testing import CompileCounter

    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, backend=counter, **options))
    # Dynamo's own patch: undoing monkeypatch.setattr would delete the setting for every later test.
    with torch._dynamo.config.patch(recompile_limit=1):
        result = run_bench(settings(methods=("dense", "renyi-2"), compile=True, repeats=1, warmup=0))
    assert not result.failed
    assert counter.frame_count == len(result.records) == 2


def test_a_row_that_cannot_be_compiled_says_so(monkeypatch):
    def broken(f: Any, **options: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    result = run_bench(settings(methods=("dense",), compile=True, repeats=1, warmup=0))
    assert [r["note"] for r in result.failed] == ["RuntimeError: no compiler"]


@pytest.mark.parametrize("skips", [0, 1])
def test_a_row_of_cuda_graphs_is_compiled_for_them_or_refused(monkeypatch, skips):
    """What Inductor would run without a CUDA graph is no row of that runtime."""
    from torch._dynamo.utils import counters

    asked, calls = [], []

    def compile_(f: Any, options: dict[str, Any] | None, **rest: Any) -> Any:
        asked.append(options)
        return called

    def called(images: torch.Tensor) -> None:
        calls.append(images)
        monkeypatch.setitem(counters["inductor"], "cudagraph_skips", counters["inductor"]["cudagraph_skips"] + skips)

    monkeypatch.setattr(torch, "compile", compile_)
    row = Row(Variant("dense"), batch_size=1, runtime="cuda-graphs")
    chosen = settings(methods=("dense",))
    bench_run._probe(row, bench_run.created(chosen), bench_run.random_images(chosen, 1), chosen, None)
    assert asked == [{"triton.cudagraphs": True, "triton.cudagraph_or_error": True, "graph_partition": False}]
    known = torch._inductor.config.get_config_copy()
    assert set(asked[0]) <= set(known)
    assert torch._inductor.list_mode_options("reduce-overhead").items() <= asked[0].items()
    assert len(calls) == 3
    assert (row.run is None) == bool(skips)
    assert row.notes == (
        ["RuntimeError: Inductor ran this row without a CUDA graph; measure it with the runtime compile instead."]
        * skips
    )
    assert row.peak is None


@pytest.mark.slow
def test_compiled_by_inductor():
    result = run_bench(settings(methods=("dense", "renyi-2"), compile=True))
    assert not result.failed


# ------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "methods must hold at least one entry"),
        ({"methods": ("dense", "topo")}, "but got 'topo'"),
        ({"keep_rates": (0.0,)}, r"keep_rate must lie in \(0, 1\]"),
        ({"batch_sizes": (4, 0)}, "batch_sizes must be at least 1, but got 0"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, but got 'int8'"),
        ({"amp": True}, "amp is autocast to a half precision, but got dtype float32"),
        ({"device": "tpu"}, 'device must be "cpu" or "cuda", but got \'tpu\''),
        ({"backend": "magic"}, "backend must be one of"),
        ({"until_interval": 0.0}, "until_interval must be a share above 0, such as 0.02 or 0.97, but got 0.0"),
        ({"bar": -1.0}, "bar must be a share above 0"),
        ({"until_interval": 0.02, "most_rounds": 1}, "most_rounds must be at least 2, but got 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused():
    with pytest.raises(ValueError, match="sees none here; use cpu"):
        settings(device="cuda")


def test_image_sizes_that_do_not_fit_the_patches_are_refused():
    with pytest.raises(ValueError, match="image_size must be a multiple of the patch size 16, but got 50; use 64"):
        run_bench(settings(image_size=50))


@pytest.mark.parametrize(("model", "image_size"), [("no_such_model", 48), ("resnet18", 48)])
def test_models_that_cannot_be_made_are_refused(model, image_size):
    with pytest.raises(ValueError, match=f"cannot make the model '{model}' at {image_size} px"):
        run_bench(settings(model=model, image_size=image_size))


# --------------------------------------------------------------------------------------------------- presentation


def record(method: str, rate: float | None, **figures: Any) -> dict[str, Any]:
    label = "Dense" if method == "dense" else entropatch.methods.method_label(method)
    empty = dict.fromkeys(("gflops", "images_per_second", "p50_ms", "p95_ms", "vs_dense", "vs_random"))
    base = {"method": method, "label": label, "keep_rate": rate, "batch_size": 64, "backend": None}
    return base | empty | {"peak_memory_mib": None, "note": ""} | figures


def rows_of(table: str) -> list[list[str]]:
    lines = [line.strip().strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if not set("".join(line)) <= set("-: ")]


def test_table_3_puts_the_papers_figures_beside_ours_and_invents_none():
    records = [
        record("dense", None, gflops=4.608, images_per_second=1000.0),
        record("random", 0.7, gflops=3.003, images_per_second=1600.0),
        record("evit", 0.7, gflops=3.036, images_per_second=1500.0),
        record("evit", 0.3, gflops=1.821, images_per_second=2500.0),
        record("renyi-2", 0.7, gflops=3.003, images_per_second=1550.25),
        record("renyi-2", 0.9, gflops=3.9, images_per_second=1200.0),
        record("shannon", 0.5, note="out of memory"),
        record("tome", 0.7, gflops=3.1),
        record("shannon-merge", 0.7, gflops=3.0),  # scored by entropy, but it merges
    ]
    text = table_3(records)
    assert "batch 64" in text
    assert rows_of(text) == [
        ["method", "keep rate", "GFLOPs, paper", "GFLOPs", "images/s, paper (RTX A6000)", "images/s"],
        ["Dense", "—", "4.61", "4.61", "—", "1000.0"],
        ["EViT", "0.7", "3.04", "3.04", "1947", "1500.0"],
        ["EViT", "0.3", "1.82", "1.82", "—", "2500.0"],
        ["Ours (Rényi, order 2)", "0.7", "3.00", "3.00", "1730", "1550.2"],
        ["Ours (Shannon)", "0.5", "2.29", "—", "—", "—"],
    ]


def test_bench_table_shows_notes_and_backends_only_where_there_are_some():
    plain = rows_of(bench_table([record("dense", None, gflops=4.608)]))
    assert plain[0][-1] == "peak MiB"
    assert "backend" not in plain[0]
    noted = rows_of(bench_table([record("renyi-2", 0.5, note="out of memory", backend="streaming")]))
    assert noted[0][-1] == "note"
    assert noted[1][3] == "streaming"
    assert noted[1][-1] == "out of memory"


def test_long_notes_stand_below_the_table_once_each():
    long = "each image keeps its own number, so cost and speed are those of random images and weights"
    notes = ["", long, "out of memory", "GFLOPs not counted: RuntimeError: tracer", long]
    table, below = bench_table([record("evit", 0.5, note=note) for note in notes]).split("\n\n")
    assert [row[-1] for row in rows_of(table)[1:]] == ["", "[1]", "out of memory", "[2]", "[1]"]
    assert below == f"- [1] {long}\n- [2] {notes[3]}\n"
    assert max(map(len, table.splitlines())) <= 140


# --------------------------------------------------------------------------------------------------- the command


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_the_command_writes_three_files_and_prints_the_table(tmp_path):
    small = ["--model", "test_vit", "--image-size", "48", "--repeats", "1", "--warmup", "0"]
    chosen = ["--methods", "dense, renyi-2", "--keep-rates", "0.5", "--batch-sizes", "1,2", "--name", "mine"]
    outcome = invoke(*small, *chosen, "--output", str(tmp_path / "out"))
    assert outcome.exit_code == 0, outcome.output
    assert rows_of(outcome.stdout)[0][0] == "method"
    assert len(rows_of(outcome.stdout)) == 5
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["mine.csv", "mine.json", "mine.md"]
    data = json.loads((tmp_path / "out" / "mine.json").read_text(encoding="utf-8"))
    assert [r["method"] for r in data["records"]] == ["dense", "renyi-2"] * 2
    assert data["about"]["repeats"] == 1
    with (tmp_path / "out" / "mine.csv").open(encoding="utf-8") as file:
        assert [float(row["images_per_second"]) > 0 for row in csv.DictReader(file)] == [True] * 4
    assert rows_of((tmp_path / "out" / "mine.md").read_text(encoding="utf-8")) == rows_of(outcome.stdout)


def test_a_row_that_fails_makes_the_status_1_and_the_rest_is_written(tmp_path):
    small = ["--model", SIGLIP["model"], "--image-size", "32", "--repeats", "1", "--warmup", "0"]
    chosen = ["--methods", "dense,evit", "--keep-rates", "0.5", "--batch-sizes", "1", "--output", str(tmp_path)]
    outcome = invoke(*small, *chosen)
    assert outcome.exit_code == 1
    assert "1 of 2 rows could not be measured" in outcome.stderr
    assert "class token" in (tmp_path / "bench.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--methods", "topo"], 2, "but got 'topo'"),
        (["--keep-rates", "0.7,x"], 2, "--keep-rates takes values with commas between, but got '0.7,x'"),
        (["--batch-sizes", "1.5"], 2, "--batch-sizes takes values"),
        (["--batch-sizes", ","], 2, "--batch-sizes takes at least one value"),
        (["--table", "1"], 2, "--table must be 3"),
        (["--table", "3", "--image-size", "384"], 2, "Table 3 is about deit_small_patch16_224 at 224 px, but got"),
        (["--table", "3", "--methods", "random"], 2, "Table 3 has rows for dense, evit and the entropy methods"),
        (["--table", "3", "--methods", "evit", "--keep-rates", "0.6"], 2, "Table 3 has rows for"),
        (["--name", "a/b"], 2, "--name is a file name without folders"),
        (["--model", "no_such_model"], 1, "cannot make the model 'no_such_model'"),
    ],
)
def test_errors_are_one_line_with_the_right_status(arguments, status, message):
    outcome = invoke(*arguments)
    assert outcome.exit_code == status
    assert outcome.stdout == ""
    assert message in outcome.stderr
    assert re.fullmatch(r"entropatch bench: [^\n]+\n", outcome.stderr)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    small = ["--model", "test_vit", "--image-size", "48", "--repeats", "1", "--warmup", "0"]
    chosen = ["--methods", "dense", "--batch-sizes", "1", "--output", str(tmp_path / "file" / "below")]
    outcome = invoke(*small, *chosen)
    assert outcome.exit_code == 1
    assert re.search(r"^entropatch bench: .*file", outcome.stderr, re.MULTILINE)


def test_table_3_from_the_command(monkeypatch, tmp_path):
    """The command hands its records to `table_3`; the measurement itself is replaced, as DeiT-S takes a while."""
    records = [record("dense", None, gflops=4.608, images_per_second=9.0)]
    made = SimpleNamespace(records=records, about={"hardware": "none"}, failed=[])
    monkeypatch.setattr("entropatch.bench.run_bench", lambda *_: made)
    outcome = invoke("--table", "3", "--output", str(tmp_path))
    assert outcome.exit_code == 0, outcome.output
    assert "Table 3 of arXiv 2604.03803" in outcome.stdout
    assert ["Dense", "—", "4.61", "4.61", "—", "9.0"] in rows_of(outcome.stdout)


# -------------------------------------------------------------------------------------------- at one cost


@pytest.mark.parametrize("more", [(), pytest.param(("tome", "renyi-2"), marks=pytest.mark.slow)])
def test_each_method_meets_the_budget_as_closely_as_it_can(more):
    """The rate found meets the budget, one ten-thousandth more does not, by models pruned and counted here."""
    import timm

    methods, target = ("dense", "random", "evit", *more), 0.0022
    made = run_bench(settings(methods=methods, keep_rates=None, target_gflops=(target,)))
    assert not made.failed
    images = torch.randn(1, 3, 48, 48)
    for record in made.records:
        if record["method"] == "dense":
            assert (record["keep_rate"], record["vs_random"]) == (None, None)
            continue
        costs = []
        for step in (0, 1):
            model = timm.create_model("test_vit", img_size=48)
            rate = round(record["keep_rate"] + step / 10_000, 4)
            entropatch.prune_(model, method=record["method"], keep_rate=rate)
            costs.append(count_flops(model, images).total / 1e9)
        assert costs[0] == record["gflops"] <= target < costs[1]
        assert record["target_gflops"] == target
        assert record["vs_random"] is not None  # though their keep rates differ
    assert len({record["keep_rate"] for record in made.records}) > 2
    assert "budget" in bench_table(made.records).splitlines()[0]


def test_a_keep_rate_is_the_same_found_from_another_method_s_or_from_nothing(monkeypatch):
    """By costs that are simple formulas of the keep rate; with fewer counts."""
    powers, counted = {"random": 1.0, "shannon": 1.0, "evit": 1.02, "renyi-inf": 1.3}, []
    targets = (0.0022, 0.0017)
    monkeypatch.setattr("entropatch.bench.targets.pruned_copy", lambda model, config: config)

    def cost(config: Any, images: torch.Tensor) -> Any:
        counted.append(config)
        return SimpleNamespace(total=0.003e9 * config.keep_rate ** powers[config.named.name])

    monkeypatch.setattr("entropatch.bench.targets.count_flops", cost)
    chosen = settings(methods=tuple(powers), keep_rates=None, target_gflops=targets, repeats=1, warmup=0)
    found = {(r["method"], r["target_gflops"]): r["keep_rate"] for r in run_bench(chosen).records}
    assert len(found) == 8
    few, images = len(counted), torch.zeros(1)
    for (method, target), rate in found.items():
        alone = Variant(method, target=target)
        assert bench_run.meeting(alone, torch.nn.Identity(), images, 0.003).keep_rate == rate
    assert few < 0.85 * (len(counted) - few)


def test_a_budget_that_a_method_cannot_meet_is_a_note():
    with pytest.raises(BudgetError, match=r"below the dense model's 0\.00\d GFLOPs, but got 9; it needs"):
        run_bench(settings(methods=("dense", "random"), keep_rates=None, target_gflops=(0.0022, 9.0)))
    made = run_bench(settings(methods=("dense", "random"), keep_rates=None, target_gflops=(1e-6,)))
    (failed,) = made.failed
    assert "some keep rate meets" in failed["note"]
    assert failed["method"] == "random"


def test_a_method_of_counts_per_image_says_whose_cost_it_is():
    made = run_bench(settings(methods=("dense", "ats")))
    assert [record["note"] != "" for record in made.records] == [False, True]
    assert "random images" in made.records[1]["note"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_gflops": (0.002,), "keep_rates": (0.5,)}, "leave one of keep_rates and target out"),
        ({"target_gflops": (0.0,), "keep_rates": None}, "numbers above 0"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


@pytest.mark.parametrize("more", [(), pytest.param(("ats",), marks=pytest.mark.slow)])
def test_the_command_takes_a_budget_and_a_group(tmp_path, monkeypatch, more):
    few = {name: entropatch.methods.METHODS[name] for name in ("random", *more, "dynamicvit")}
    monkeypatch.setattr(entropatch.methods.METHODS, "_methods", few)
    command = ["bench", "--model", "test_vit", "--image-size", "48", "--methods", "training-free", "--batch-sizes", "1"]
    command += ["--target-gflops", "0.0022", "--repeats", "1", "--warmup", "0", "--output", str(tmp_path)]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    records = json.loads((tmp_path / "bench.json").read_text())["records"]
    assert [record["method"] for record in records] == ["dense", "random", *more]
    assert all(record["gflops"] <= 0.0022 for record in records[1:])


def test_a_budget_that_needs_no_pruning_is_no_setting(tmp_path):
    command = ["bench", "--model", "test_vit", "--image-size", "48", "--methods", "all", "--target-gflops", "9"]
    ran = CliRunner().invoke(app, [*command, "--output", str(tmp_path)])
    assert ran.exit_code == 2
    assert "the budget must be below the dense model's" in ran.output
    assert not list(tmp_path.iterdir())
