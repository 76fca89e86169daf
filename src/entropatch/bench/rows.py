"""The rows of a benchmark on their way through one batch size, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from entropatch.bench.bar import reaches
from entropatch.bench.runtimes import TORCH
from entropatch.measure import Timing
from entropatch.measure.timing import SpeedRatio, speed_ratio
from entropatch.measure.variants import Variant, floor_of
from entropatch.methods import DENSE

Record = dict[str, Any]


@dataclass
class Row:
    """A variant in one runtime, on its way through one batch size."""

    variant: Variant
    batch_size: int = 0
    run: Callable[[], object] | None = None
    backend: str | None = None
    gflops: float | None = None
    peak: int | None = None
    timing: Timing | None = None
    notes: list[str] = field(default_factory=list)
    runtime: str = TORCH
    int8: str | None = None
    difference: float | None = None

    def key(self, variant: Variant | None = None) -> tuple[Variant, str, str | None]:
        """What it is among the rows of its batch size, or another variant in the same runtime."""
        return (variant or self.variant, self.runtime, self.int8)


def ratios_asked(rows: Sequence[Row], with_random: bool) -> list[tuple[str, str]]:
    """Whose ratio to whom must be sure, by their places: each row's to random at its keep rate, or to dense."""
    places = {row.key(): str(i) for i, row in enumerate(rows)}
    variants = [row.variant for row in rows]
    bases: dict[Any, str | None] = {}
    for row in rows:
        base = floor_of(row.variant, variants) if with_random else Variant(DENSE)
        bases[row.key()] = None if base is None else places.get(row.key(base))
    return [(places[one], base) for one, base in bases.items() if base is not None and base != places[one]]


def settled(pairs: list[tuple[str, str]], width: float, timings: dict[str, Timing]) -> bool:
    """Whether the intervals of these ratios are within ± that share of their medians."""
    return all(speed_ratio(timings[one], timings[base]).half_width <= width for one, base in pairs)


def records_of(rows: Sequence[Row], bar: float | None = None) -> list[Record]:
    """One record per row, with the ratios of its rounds to dense's and random's, and whether it reaches the bar."""
    timings = {(row.batch_size, row.key()): row.timing for row in rows if row.timing is not None}
    several = len({(row.runtime, row.int8) for row in rows}) > 1
    variants = [row.variant for row in rows]
    records = []
    for row in rows:
        base = {"dense": Variant(DENSE), "random": floor_of(row.variant, variants)}
        there = {
            name: None if variant is None else timings.get((row.batch_size, row.key(variant)))
            for name, variant in base.items()
        }
        there["torch"] = timings.get((row.batch_size, (row.variant, TORCH, None)))
        ratios = {
            name: None if row.timing is None or timing is None else speed_ratio(row.timing, timing)
            for name, timing in there.items()
        }
        records.append(
            {
                "method": row.variant.method,
                "label": row.variant.label,
                "keep_rate": row.variant.keep_rate,
                **({} if row.variant.target is None else {"target_gflops": row.variant.target}),
                "batch_size": row.batch_size,
                "runtime": row.runtime,
                "int8": row.int8,
                "backend": row.backend,
                "gflops": row.gflops,
                "images_per_second": row.timing.images_per_second if row.timing else None,
                "p50_ms": row.timing.p50_ms if row.timing else None,
                "p95_ms": row.timing.p95_ms if row.timing else None,
                "rounds": row.timing.repeats if row.timing else None,
                **_ratio_fields("vs_dense", ratios["dense"], row.variant == base["dense"]),
                **_ratio_fields("vs_random", ratios["random"], row.variant == base["random"]),
                **(_ratio_fields("vs_torch", ratios["torch"], row.runtime == TORCH) if several else {}),
                **({"difference": row.difference} if several else {}),
                **({} if bar is None else {"reaches": _answer(row, ratios["random"], base["random"], bar)}),
                "peak_memory_mib": None if row.peak is None else row.peak / 2**20,
                "note": "; ".join(row.notes),
            }
        )
    return records


def _ratio_fields(name: str, ratio: SpeedRatio | None, itself: bool) -> Record:
    """The median and its interval; a row's ratio to itself is 1 and has none."""
    ends = (None, None) if ratio is None or itself else (ratio.low, ratio.high)
    return {name: None if ratio is None else ratio.median, f"{name}_low": ends[0], f"{name}_high": ends[1]}


def _answer(row: Row, ratio: SpeedRatio | None, random: Variant | None, bar: float) -> str | None:
    return None if ratio is None or row.variant == random else reaches(ratio.low, ratio.high, bar)
