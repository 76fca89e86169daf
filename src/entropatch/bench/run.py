"""Running a benchmark: every variant of a model in turns, on one machine, into records."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.bench.settings import DENSE, DTYPES, RANDOM, BenchSettings, Variant
from entropatch.files import require
from entropatch.measure import Timing, count_flops, environment, peak_memory, time_interleaved
from entropatch.measure.memory import memory_errors

Record = dict[str, Any]


@dataclass(frozen=True)
class BenchResult:
    """What `run_bench` measured.

    Attributes:
        records: one per row: method, keep_rate, batch_size, gflops (10⁹ multiply-adds per image), images_per_second,
            p50_ms, p95_ms, vs_dense and vs_random (ratios of images_per_second at the same batch size, for vs_random
            at the same keep rate too), peak_memory_mib, note. What could not be measured is None; the note says why.
        about: machine, versions and settings, which hold for all rows.
    """

    records: list[Record]
    about: dict[str, Any]

    @property
    def failed(self) -> list[Record]:
        """The records of rows that could not be measured."""
        return [record for record in self.records if record["images_per_second"] is None]


@dataclass
class _Row:
    """A variant on its way through one batch size."""

    variant: Variant
    batch_size: int
    run: Callable[[], object] | None = None
    gflops: float | None = None
    peak: int | None = None
    timing: Timing | None = None
    notes: list[str] = field(default_factory=list)


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
    """
    require("fvcore", "bench")
    step = on_step or (lambda: None)
    rows: list[_Row] = []
    with memory_errors() if torch.device(settings.device).type == "cpu" else nullcontext(), _one_graph_each():
        model = _create(settings)
        pruned = {variant: _attempt(lambda variant=variant: variant.apply(model)) for variant in settings.variants()}
        gflops = {variant: _gflops(made, settings) for variant, (made, _) in pruned.items()}
        for batch_size in settings.batch_sizes:
            group = [_Row(variant, batch_size) for variant in pruned]
            for row in group:
                made, reason = pruned[row.variant]
                row.gflops, note = gflops[row.variant]
                row.notes += [text for text in (reason, note) if text]
                if made is not None:
                    _probe(row, made, settings)
                step()
            _time(group, settings, step)
            for row in group:
                row.run = None  # its compiled graph and buffers
            rows += group
    return BenchResult(_records(rows), _about(settings))


def _create(settings: BenchSettings) -> nn.Module:
    import timm

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(settings.model, pretrained=False, img_size=settings.image_size)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"timm cannot make the model {settings.model!r} at {settings.image_size} px: {_first_line(error)}"
        ) from error
    return model.to(settings.device, torch.float32 if settings.amp else DTYPES[settings.dtype]).eval()


def _images(settings: BenchSettings, batch_size: int) -> Tensor:
    shape = (batch_size, 3, settings.image_size, settings.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return images.to(settings.device, torch.float32 if settings.amp else DTYPES[settings.dtype])


def _autocast(settings: BenchSettings) -> AbstractContextManager[Any]:
    kind = torch.device(settings.device).type
    return torch.autocast(kind, dtype=DTYPES[settings.dtype]) if settings.amp else nullcontext()


def _gflops(model: nn.Module | None, settings: BenchSettings) -> tuple[float | None, str | None]:
    """10⁹ multiply-adds per image, and what has to be said about them."""
    if model is None:
        return None, None
    with _autocast(settings):
        flops, reason = _attempt(lambda: count_flops(model, _images(settings, 1)))
    if flops is None:
        return None, f"GFLOPs not counted: {reason}"
    missed = ", ".join(flops.uncounted)
    return flops.total / 1e9, f"GFLOPs leave out {missed}" if missed else None


def _probe(row: _Row, model: nn.Module, settings: BenchSettings) -> None:
    """Give the row its function, run it and measure its peak memory; or note why not."""
    forward = _compiled(model) if settings.compile else model

    def run() -> object:
        with _autocast(settings):
            return forward(images)

    def measure() -> int:
        nonlocal images
        images = _images(settings, row.batch_size)
        return peak_memory(run, settings.device)

    images = torch.empty(0)
    row.peak, reason = _attempt(measure)
    if reason is None:
        row.run = run
    else:
        row.notes.append(reason)


def _compiled(model: nn.Module) -> Callable[[Tensor], object]:
    """The model as one compiled graph."""

    def forward(images: Tensor) -> object:
        return model(images)

    # Dynamo keeps its graphs by code object and tries all of one's in turn; a code object of its own keeps each row
    # from paying for the guards of the rows before it, and from the limit on recompilations.
    own = types.FunctionType(forward.__code__.replace(), globals(), "forward", None, forward.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


@contextmanager
def _one_graph_each() -> Iterator[None]:
    """Fail where Dynamo would give up compiling and run eagerly without a word."""
    import torch._dynamo.config as dynamo

    with dynamo.patch(fail_on_recompile_limit_hit=True):
        yield


class _RunError(Exception):
    """A row failed while it was timed."""

    def __init__(self, row: _Row, reason: str):
        super().__init__(reason)
        self.row, self.reason = row, reason


def _time(rows: list[_Row], settings: BenchSettings, step: Callable[[], None]) -> None:
    """Time the rows that run, in turns; a row that fails now is left out and the others begin anew."""
    while alive := [row for row in rows if row.run is not None]:
        runs = {str(i): _named(row) for i, row in enumerate(alive)}
        try:
            timings = time_interleaved(
                runs,
                alive[0].batch_size,
                repeats=settings.repeats,
                warmup=settings.warmup,
                device=settings.device,
                on_step=step,
            )
        except _RunError as error:
            error.row.run = None
            error.row.notes.append(error.reason)
            continue
        for row, timing in zip(alive, timings.values(), strict=True):
            row.timing = timing
        return


def _named(row: _Row) -> Callable[[], object]:
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
    # Outside the handler: the traceback held the tensors of the failed pass.
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return None, reason


def _reason(error: Exception) -> str:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
        return "out of memory"
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:300]


def _records(rows: list[_Row]) -> list[Record]:
    speed = {(r.batch_size, r.variant): r.timing.images_per_second for r in rows if r.timing is not None}

    def ratio(row: _Row, other: Variant) -> float | None:
        mine, base = speed.get((row.batch_size, row.variant)), speed.get((row.batch_size, other))
        return None if mine is None or base is None else mine / base

    return [
        {
            "method": row.variant.method,
            "label": row.variant.label,
            "keep_rate": row.variant.keep_rate,
            "batch_size": row.batch_size,
            "gflops": row.gflops,
            "images_per_second": row.timing.images_per_second if row.timing else None,
            "p50_ms": row.timing.p50_ms if row.timing else None,
            "p95_ms": row.timing.p95_ms if row.timing else None,
            "vs_dense": ratio(row, Variant(DENSE, None)),
            "vs_random": ratio(row, Variant(RANDOM, row.variant.keep_rate)),
            "peak_memory_mib": None if row.peak is None else row.peak / 2**20,
            "note": "; ".join(row.notes),
        }
        for row in rows
    ]


def _about(settings: BenchSettings) -> dict[str, Any]:
    chosen = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return {
        **environment(settings.device),
        **{
            key: value for key, value in chosen.items() if key not in ("device", "methods", "keep_rates", "batch_sizes")
        },
        "weights": "random; speed, memory and GFLOPs do not depend on them",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "gflops": "10⁹ multiply-adds per image by fvcore's rules",
        "timing": "inference mode; rows take turns; medians of the timed calls",
        "peak_memory": "tensors allocated by one forward pass, without weights and images",
    }
