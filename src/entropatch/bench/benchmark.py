"""Running a benchmark: every variant of a model in turns, on one machine, into records."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.bench.compiling import compiled, no_eager_fallback, record_cuda_graph
from entropatch.bench.inputs import autocast, created, random_images
from entropatch.bench.rows import Record, Row, ratios_asked, records_of, settled
from entropatch.bench.runtimes import COMPILED, CUDA_GRAPHS, EXPORTED, TORCH, ExportedFiles, versions
from entropatch.bench.settings import BenchSettings
from entropatch.bench.targets import meeting
from entropatch.error_text import one_line
from entropatch.export.subject import BACKEND
from entropatch.extras import require
from entropatch.measure import Flops, count_flops, environment, peak_memory, time_interleaved
from entropatch.measure.budget import refuse_dense
from entropatch.measure.environment import load_average
from entropatch.measure.memory import memory_errors
from entropatch.measure.variants import Variant, pruned_copy
from entropatch.methods import DENSE, RANDOM
from entropatch.surgery import trace


@dataclass(frozen=True)
class BenchResult:
    """What `run_bench` measured.

    Attributes:
        records: one per row: method, label, keep_rate, batch_size, backend (what computed the entropies, if any),
            gflops (10⁹ multiply-adds per image), images_per_second, p50_ms, p95_ms, rounds (timed), vs_dense and
            vs_random (median of the rounds' ratios of images/s at the same batch size, for vs_random at the same keep
            rate too) with their 95 % intervals vs_…_low and _high (see `speed_ratio`), reaches (with a bar: "yes",
            "no" or "unknown"), peak_memory_mib, note; runtime and int8; with several of them vs_torch (to the same
            variant in PyTorch, as vs_dense) and difference (largest of an output from PyTorch's; with random weights
            near ties show in it; None in the compiled ones). Peak memory is PyTorch's: None of a file's runtime and
            of CUDA graphs, which hold theirs. What could not be measured is None; the note says why.
        about: machine, versions and settings, which hold for all rows.
    """

    records: list[Record]
    about: dict[str, Any]

    @property
    def failed(self) -> list[Record]:
        """The records of rows that could not be measured."""
        return [record for record in self.records if record["images_per_second"] is None]


def run_bench(settings: BenchSettings, on_step: Callable[[], None] | None = None) -> BenchResult:
    """Measure every variant at every batch size; the variants of a batch size take turns, so that drift hits all alike.

    A variant that runs out of memory, or cannot be made or run, is reported in its row's note; the others are still
    measured. All variants share one set of weights.

    Args:
        settings: what to measure.
        on_step: called after each peak-memory measurement and each warm-up or timed call.

    Raises:
        ImportError: fvcore or timm is not installed.
        ValueError: the model is unknown or cannot be made at this image size.
        BudgetError: a target is not below what the dense model needs.
    """
    require("fvcore", "bench")
    step, load = on_step or (lambda: None), load_average()
    rows: list[Row] = []
    on_cpu = torch.device(settings.device).type == "cpu"
    with (
        memory_errors() if on_cpu else nullcontext(),
        no_eager_fallback() if {*COMPILED} & {*settings.runtimes} else nullcontext(),
        ExportedFiles(settings.int8) as files,
    ):
        model = created(settings)
        dense = cache(lambda: count_flops(model, random_images(settings, 1)).total / 1e9)
        with autocast(settings):
            for target in settings.target_gflops:
                refuse_dense(target, dense())
        rates: dict[float, float] = {}  # of each target the last that was found, near which another method's is
        made = [_make(variant, model, settings, dense, rates) for variant in settings.variants()]
        for batch_size in settings.batch_sizes:
            images, reason = _attempt(lambda batch_size=batch_size: random_images(settings, batch_size))
            group = [
                (replace(row, batch_size=batch_size, notes=[*row.notes], runtime=runtime, int8=int8), pruned)
                for runtime, int8 in settings.kinds()
                for row, pruned in made
            ]
            for row, pruned in group:
                if reason is not None:
                    row.notes.append(reason)
                elif pruned is not None:
                    _probe(row, pruned, images, settings, files)
                step()
            _time([row for row, _ in group], settings, step)
            for row, _ in group:
                row.run = None  # its compiled graph and buffers
                rows.append(row)
    return BenchResult(records_of(rows, settings.bar), _about(settings) | {"load_average_before": load})


def _make(
    variant: Variant, model: nn.Module, settings: BenchSettings, dense: Callable[[], float], rates: dict[float, float]
) -> tuple[Row, nn.Module | None]:
    """The pruned model, and a row with what does not depend on the batch size; None and a note if it cannot be made.

    Where there is a budget, `dense` gives the dense model's 10⁹ multiply-adds per image, and `rates` the last keep rate
    that met each target; one that is found is noted there.
    """
    images = random_images(settings, 1)
    if (target := variant.target) is not None:
        with autocast(settings):
            met, reason = _attempt(lambda: meeting(variant, model, images, dense(), rates.get(target)))
        if reason is not None:
            return Row(variant, notes=[reason]), None
        variant, rates[target] = met, met.keep_rate
    row = Row(variant)
    if settings.target_gflops and target is None and variant.method != DENSE and variant.setting is None:
        row.notes.append("it takes no keep rate, so it meets no budget")
    config = variant.config(backend=settings.backend)
    pruned, reason = _attempt(lambda: pruned_copy(model, config))
    if reason is not None:
        row.notes.append(reason)
        return row, None
    if config is not None and config.schedule.per_image:
        row.notes.append("each image keeps its own number, so cost and speed are those of random images and weights")

    def inspect() -> tuple[Flops, str | None]:
        if variant.order is None:
            return count_flops(pruned, images), None
        with trace(pruned) as seen:
            flops = count_flops(pruned, images)
        return flops, seen.stages[0].backend if seen.stages else None

    with autocast(settings):
        inspected, reason = _attempt(inspect)
    if reason is not None:
        row.notes.append(f"GFLOPs not counted: {reason}")
        return row, pruned
    flops, row.backend = inspected
    row.gflops = flops.total / 1e9
    if flops.uncounted:
        row.notes.append(f"GFLOPs leave out {', '.join(flops.uncounted)}")
    return row, pruned


def _probe(row: Row, model: nn.Module, images: Tensor, settings: BenchSettings, files: ExportedFiles) -> None:
    """Give the row its function, run it and measure its peak memory; or note why not."""

    def prepare() -> tuple[Callable[[], object], int | None]:
        if row.runtime in EXPORTED:
            run = files.run(row.runtime, row.variant, model, images, row.int8)
            row.backend = row.backend and BACKEND
            with torch.inference_mode():
                row.difference = (model(images) - torch.from_numpy(run())).abs().max().item()
            return run, None  # the runtime's own memory, of which PyTorch knows nothing
        forward = model if row.runtime == TORCH else compiled(model, row.runtime == CUDA_GRAPHS)

        def run() -> object:
            with autocast(settings):
                return forward(images)

        if row.runtime == CUDA_GRAPHS:
            record_cuda_graph(run)
            return run, None  # a graph holds its memory from call to call
        return run, peak_memory(run, settings.device)

    prepared, reason = _attempt(prepare)
    if reason is None:
        row.run, row.peak = prepared
    else:
        row.notes.append(reason)


class _RunError(Exception):
    """A row failed while it was timed."""

    def __init__(self, row: Row, reason: str):
        super().__init__(reason)
        self.row, self.reason = row, reason


def _time(rows: list[Row], settings: BenchSettings, step: Callable[[], None]) -> None:
    """Time the rows that run, in turns; a row that fails now is left out and the others begin anew."""
    while alive := [row for row in rows if row.run is not None]:
        runs = {str(i): _named(row) for i, row in enumerate(alive)}
        pairs = ratios_asked(alive, RANDOM in settings.methods)
        try:
            timings = time_interleaved(
                runs,
                alive[0].batch_size,
                repeats=settings.repeats,
                warmup=settings.warmup,
                device=settings.device,
                on_step=step,
                shuffled=True,
                until=None if settings.until_interval is None else partial(settled, pairs, settings.until_interval),
                most=settings.most_rounds,
            )
        except _RunError as error:
            error.row.run = None
            error.row.notes.append(error.reason)
        else:
            for row, timing in zip(alive, timings.values(), strict=True):
                row.timing = timing
            return
        _release()


def _named(row: Row) -> Callable[[], object]:
    """The row's function; what it raises says which row it was."""
    run = row.run
    assert run is not None

    def named() -> object:
        try:
            return run()
        except Exception as error:
            raise _RunError(row, _reason(error)) from None

    return named


def _attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """(result, None), or (None, the reason in one line). One row's failure must not end the others' measurement."""
    try:
        return work(), None
    except Exception as error:
        reason = _reason(error)
    _release()  # outside the handler, since the traceback held the tensors of the failed pass
    return None, reason


def _release() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _reason(error: Exception) -> str:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
        return "out of memory"
    return f"{type(error).__name__}: {one_line(error, first=True)}"


def _about(settings: BenchSettings) -> dict[str, Any]:
    chosen = {f.name: getattr(settings, f.name) for f in fields(settings)}
    chosen["configs"] = {name: config.to_dict() for name, config in settings.configs.items()}
    return {
        **environment(settings.device),
        **{
            key: value
            for key, value in chosen.items()
            if key not in ("device", "backend", "methods", "keep_rates", "target_gflops", "batch_sizes")
        },
        **versions(settings.runtimes),
        "weights": "random; speed, memory and GFLOPs do not depend on them",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "gflops": "10⁹ multiply-adds per image by fvcore's rules",
        "timing": "inference mode; rows take turns, each round in an order of its own; medians of the timed calls",
        "ratios": "medians of the rounds' ratios; 95 % intervals by order statistics",
        "peak_memory": "tensors allocated by one forward pass, without weights and images",
    }
