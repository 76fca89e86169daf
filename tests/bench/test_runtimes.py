"""Exported files timed beside PyTorch: the rows, their ratios, and settings that make no sense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import create

import entropatch.bench.benchmark as bench_run
from entropatch.bench import BenchSettings, bench_table, check_table, run_bench
from entropatch.bench.rows import Row, ratios_asked, records_of
from entropatch.measure import Timing
from entropatch.measure.variants import Variant

DENSE, PRUNED = Variant("dense"), Variant("renyi-2", 0.5)
TINY: dict[str, Any] = {"model": "test_vit", "image_size": 48, "keep_rates": (0.5,), "repeats": 1, "warmup": 0}


def timed(seconds: float) -> Timing:
    return Timing(1 / seconds, seconds * 1e3, seconds * 1e3, 1, (seconds,))


def test_ratios_are_taken_within_a_runtime_and_to_pytorch() -> None:
    kinds = [("torch", None), ("onnxruntime", None), ("onnxruntime", "dynamic")]
    times = iter([8.0, 4.0, 6.0, 2.0, 3.0, 1.5])
    rows = [
        Row(variant, batch_size=1, timing=timed(next(times)), runtime=runtime, int8=int8)
        for runtime, int8 in kinds
        for variant in (DENSE, PRUNED)
    ]
    records = records_of(rows)
    assert [(r["runtime"], r["int8"], r["method"]) for r in records] == [
        (*kind, method) for kind in kinds for method in ("dense", "renyi-2")
    ]
    assert [r["vs_dense"] for r in records] == [1, 2, 1, 3, 1, 2]
    assert [r["vs_torch"] for r in records] == pytest.approx([1, 1, 8 / 6, 2, 8 / 3, 4 / 1.5])
    assert ratios_asked(rows, with_random=False) == [("1", "0"), ("3", "2"), ("5", "4")]
    table = bench_table([record | {"gflops": None} for record in records])
    assert all(head in table for head in ("runtime", "int8", "× PyTorch"))


def test_one_runtime_has_no_columns_of_several() -> None:
    (record,) = records_of([Row(DENSE, batch_size=1, timing=timed(1.0))])
    assert record["runtime"] == "torch"
    assert "vs_torch" not in record
    assert "runtime" not in bench_table([record])


def test_what_is_measured_stands_beside_pytorch() -> None:
    assert BenchSettings(**TINY).kinds() == [("torch", None)]
    assert BenchSettings(**TINY, compile=True).kinds() == [("compile", None)]
    chosen = BenchSettings(**TINY, runtimes=("onnxruntime", "compile"), int8="static", methods=("dense", "random"))
    assert chosen.kinds() == [("torch", None), ("onnxruntime", None), ("compile", None), ("onnxruntime", "static")]
    assert chosen.steps() == 2 * 4 * 2 * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"runtimes": ("tensorrt",)},
            "runtimes must be of torch, compile, cuda-graphs, onnxruntime, openvino, but got 'tensorrt'",
        ),
        ({"runtimes": ("onnxruntime",), "compile": True}, "compile is the one runtime then, but got onnxruntime too"),
        ({"runtimes": ("cuda-graphs",)}, "cuda-graphs needs device cuda, but got cpu; use compile on a CPU"),
        ({"runtimes": ("cuda-graphs",), "device": "cpu:0"}, "cuda-graphs needs device cuda, but got cpu:0"),
        ({"runtimes": ("onnxruntime",), "dtype": "bfloat16"}, "on the CPU in float32, but got device cpu and dtype bf"),
        ({"int8": "dynamic"}, "with a runtime of onnxruntime, openvino, but got 'dynamic' with torch"),
        ({"runtimes": ("openvino",), "int8": "4"}, "int8 must be one of dynamic, static"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BenchSettings(**(TINY | changes))


def test_table_3_is_of_one_runtime() -> None:
    with pytest.raises(ValueError, match="Table 3 is of one runtime, but got torch, onnxruntime"):
        check_table(3, BenchSettings(runtimes=("onnxruntime",)))


def test_exported_files_run_beside_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real files, so that every row computes what PyTorch's does, and each is exported once."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = create("deit", depth=1)
    monkeypatch.setattr(bench_run, "created", lambda settings: model)
    outputs: dict[str, Any] = {}
    real = bench_run._time

    def look(rows: list[Row], *rest: Any) -> None:
        with torch.inference_mode():
            outputs.update({f"{row.runtime} {row.int8} {row.batch_size}": torch.as_tensor(row.run()) for row in rows})
        real(rows, *rest)

    monkeypatch.setattr(bench_run, "_time", look)
    written = []
    write = bench_run.ExportedFiles.run.__globals__["write_files"]
    monkeypatch.setitem(
        bench_run.ExportedFiles.run.__globals__,
        "write_files",
        lambda *given: written.append(given) or write(*given),
    )
    runtimes = ("torch", "onnxruntime")
    chosen = BenchSettings(
        **(TINY | {"image_size": 80}), methods=("renyi-2",), batch_sizes=(1, 3), runtimes=runtimes, int8="dynamic"
    )
    result = run_bench(chosen)
    assert not result.failed
    assert len(written) == 1
    assert [(r["runtime"], r["int8"]) for r in result.records[:3]] == chosen.kinds()
    assert [r["backend"] for r in result.records[:3]] == ["streaming", "reference", "reference"]
    assert {"onnxruntime", "runtimes"} <= set(result.about)
    for batch in (1, 3):
        same, less = (outputs[f"onnxruntime {int8} {batch}"] for int8 in (None, "dynamic"))
        assert same.shape == (batch, 5)
        assert (same - outputs[f"torch None {batch}"]).abs().max() < 1e-5
        assert (less - outputs[f"torch None {batch}"]).abs().max() > 1e-4
    differences = [r["difference"] for r in result.records[:3]]
    assert differences[0] is None
    assert differences[1] < 1e-5 < differences[2]


def test_a_file_that_cannot_be_made_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> None:
        raise ValueError("no such operator")

    monkeypatch.setitem(bench_run.ExportedFiles.run.__globals__, "write_files", broken)
    result = run_bench(BenchSettings(**TINY, methods=("dense",), batch_sizes=(1,), runtimes=("onnxruntime",)))
    assert [(r["runtime"], r["note"]) for r in result.failed] == [("onnxruntime", "ValueError: no such operator")]
    assert result.records[0]["images_per_second"] > 0
