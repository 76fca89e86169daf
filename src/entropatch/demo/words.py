"""The demo's records, the table of them, and which method is ahead, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from entropatch.demo.settings import DemoSettings
from entropatch.measure import Timing
from entropatch.measure.linear_probe import Digits
from entropatch.measure.variants import Variant
from entropatch.records.uncertainty import binomial

Record = dict[str, Any]


def make_records(
    rows: Mapping[str, Variant], hits: Mapping[str, np.ndarray], speed: Mapping[str, tuple[float, Timing]]
) -> list[Record]:
    """One record per row, as `DemoResult` lists them."""
    dense = next(speed[name][1] for name, row in rows.items() if row.keep_rate is None)
    records = []
    for name, row in rows.items():
        gflops, timing = speed[name]
        accuracy = binomial(int(hits[name].sum()), len(hits[name]))
        records.append(
            {
                "method": row.method,
                "label": row.label,
                "keep_rate": row.keep_rate,
                "accuracy": accuracy.value,
                "accuracy_error": accuracy.standard_error,
                "gflops": gflops,
                "images_per_second": timing.images_per_second,
                "p50_ms": timing.p50_ms,
                "p95_ms": timing.p95_ms,
                "vs_dense": timing.images_per_second / dense.images_per_second,
            }
        )
    return records


# Head of the column, and how a record shows in it.
COLUMNS: dict[str, Callable[[Record], Any]] = {
    "method": lambda record: record["label"],
    "keep rate": lambda record: record["keep_rate"],
    "digits right %": lambda record: f"{record['accuracy']:.1f} ± {record['accuracy_error']:.1f}",
    "GFLOPs": lambda record: f"{record['gflops']:.2f}",
    "images/s": lambda record: f"{record['images_per_second']:.1f}",
    "× dense": lambda record: f"{record['vs_dense']:.2f}",
    "p50 ms": lambda record: f"{record['p50_ms']:.0f}",
    "p95 ms": lambda record: f"{record['p95_ms']:.0f}",
}


def shown_table(records: Sequence[Record]) -> tuple[list[str], list[list[Any]]]:
    """Head and cells of the table people read; the records in the files hold all digits."""
    return list(COLUMNS), [[show(record) for show in COLUMNS.values()] for record in records]


def finding(keep_rate: float, rows: Mapping[str, Variant], hits: Mapping[str, np.ndarray]) -> str:
    """Which method is ahead in accuracy at a keep rate, by how much, and whether that is more than noise.

    The best row that prunes by entropy is set against the best other one. Their difference is taken image by image,
    and its error is the standard error of the mean of these; under two of them it is called noise.
    """
    at_rate = [name for name, row in rows.items() if row.keep_rate == keep_rate]
    by_entropy = [name for name in at_rate if rows[name].order is not None]
    groups = (by_entropy, [name for name in at_rate if name not in by_entropy])
    best = [max(group, key=lambda name: hits[name].mean()) for group in groups if group]
    ahead, *behind = sorted(best, key=lambda name: hits[name].mean(), reverse=True)
    score = f"{100 * hits[ahead].mean():.1f} %"
    text = f"{rows[ahead].label} is ahead with {score}"
    if not behind:
        return text + "."
    kind = "the best entropy method" if behind[0] in by_entropy else "the best other method"
    difference = hits[ahead].astype(float) - hits[behind[0]]
    gap, error = 100 * difference.mean(), 100 * difference.std() / math.sqrt(len(difference))
    if gap == 0:
        return f"{rows[ahead].label} and {rows[behind[0]].label} are level with {score}."
    verdict = "more than noise" if gap > 2 * error else "within the noise of this test"
    return f"{text}, {gap:.1f} ± {error:.1f} points before {rows[behind[0]].label}, {kind}: {verdict}."


def accuracy_note(digits: Digits, settings: DemoSettings) -> str:
    """What the accuracies are of."""
    return (
        f"scikit-learn's digits enlarged to {settings.digit_size} px; class-token feature, logistic regression fitted "
        f"anew for each row on {digits.training} of them, the other {digits.held_out} held out; ± is one standard error"
    )


def timing_note(records: Sequence[Record], settings: DemoSettings) -> str:
    """How the speed was measured, and how steady it was."""
    spread = max(record["p95_ms"] / record["p50_ms"] for record in records) - 1
    text = (
        f"batch {settings.batch_size} at {settings.image_size} px on the CPU, rows in turns, median of "
        f"{settings.repeats} rounds; the 95th percentile lies up to {100 * spread:.0f} % above the median"
    )
    return text + ("; the machine was busy with other things, so trust only large ratios" if spread > 0.25 else "")
