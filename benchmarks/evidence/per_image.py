"""Keep rates and orders from each image's own attention, against a fixed rate of the same mean cost, without training.

    python benchmarks/evidence/per_image.py --data imagenette --root FOLDER --weights CLASSIFIER --size 112 --output OUT

Thresholds are calibrated without labels on images of the training split, so that their mean multiply-adds are those of
the fixed rate; what the test images then cost is counted and reported. Top-1 differences are paired, on the same images
(`entropatch.records.uncertainty`). Timings are of real test images, interleaved: in a round every variant is given the
same images, and speeds are medians of the rounds' ratios to the fixed rate. Writes per-image.json and per-image.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from pixels import listed
from torch import Tensor, nn

from entropatch import CumulativeImportance, PruneConfig, SharedBudget, Threshold, calibrate_threshold, trace
from entropatch.criteria import ClassAttention, Criterion, PerImageOrder, Renyi
from entropatch.data.loaders import evaluation_loader, evaluation_transform_of
from entropatch.measure import count_flops, environment, time_interleaved
from entropatch.measure.timing import speed_ratio
from entropatch.measure.variants import pruned_copy
from entropatch.models.spec import ModelSpec
from entropatch.records.files import write_text
from entropatch.records.tables import markdown_table
from entropatch.records.uncertainty import accuracy, paired_difference

CRITERIA: dict[str, Criterion] = {
    "shannon": Renyi(1.0),
    "renyi-2": Renyi(2.0),
    "renyi-inf": Renyi(float("inf")),
    "class attention": ClassAttention(),
}
BY_IMAGE = "order by image"
FIXED = "fixed"


@dataclass(frozen=True)
class Row:
    """One variant: its mean multiply-adds and accuracy on the test images, and the paired difference to `against`."""

    criterion: str
    schedule: str
    keep_rate: float
    gflops: float
    top1: float
    top1_error: float
    against: str
    difference: float | None
    difference_error: float | None
    differing: int | None
    counts: dict[str, int]
    config: dict[str, Any]


def variants(
    model: nn.Module, images: Tensor, keep_rate: float, sizes: tuple[float, ...]
) -> Iterator[tuple[str, str, PruneConfig]]:
    """Criterion, schedule and setting of each variant at the cost of a keep rate."""
    for name, criterion in CRITERIA.items():
        yield name, FIXED, PruneConfig(keep_rate, criterion)
        for kind, schedule in (("threshold", Threshold(sizes=sizes)), ("share", CumulativeImportance(sizes=sizes))):
            if name in ("renyi-2", "class attention"):
                found = calibrate_threshold(model, images, keep_rate=keep_rate, schedule=schedule, criterion=criterion)
                yield name, kind, found
        if name in ("renyi-2", "class attention"):
            yield name, "shared", PruneConfig(keep_rate, criterion, schedule=SharedBudget())
    yield BY_IMAGE, FIXED, PruneConfig(keep_rate, PerImageOrder())


def tested(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> tuple[np.ndarray, float, dict]:
    """Which images are right, their mean GFLOPs, and how many kept how many tokens to the end."""
    right, counts, macs = [], dict[str, int](), 0.0
    for batch, expected in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        with torch.inference_mode(), trace(model) as seen:
            right.append(model(batch).argmax(1) == expected)
        last = seen.counts[-1]
        for count in last if isinstance(last, list) else [last] * len(batch):
            counts[str(count)] = counts.get(str(count), 0) + 1
        macs += count_flops(model, batch).total * len(batch)
    return (
        torch.cat(right).numpy(),
        macs / len(images) / 1e9,
        dict(sorted(counts.items(), key=lambda item: int(item[0]))),
    )


def rows_of(
    dense: nn.Module, found: Mapping[tuple[str, str], PruneConfig], keep_rate: float, test: Any, batch_size: int
) -> list[Row]:
    """Each variant tested. A schedule stands against the fixed rate of its criterion, the order by image against 2."""
    results = {key: tested(pruned_copy(dense, config), *test, batch_size) for key, config in found.items()}
    rows = []
    for (criterion, schedule), (right, gflops, counts) in results.items():
        top1, gap = accuracy(right), None
        against = ("renyi-2" if criterion == BY_IMAGE else criterion, FIXED)
        if against != (criterion, schedule):
            gap = paired_difference(right, results[against][0])
        error = (None, None, None) if gap is None else (gap.value, gap.standard_error, gap.differing)
        config = found[criterion, schedule].to_dict()
        named = "" if gap is None else " ".join(against)
        rows.append(
            Row(criterion, schedule, keep_rate, gflops, top1.value, top1.standard_error, named, *error, counts, config)
        )
    return rows


def timed(
    dense: nn.Module, found: Mapping[str, PruneConfig | None], images: Tensor, batch_size: int, rounds: int
) -> list[dict[str, Any]]:
    """Images/s of variants in turns, and their ratios to the fixed rate by rounds."""
    runs = {}
    for name, config in found.items():
        model, batches = (
            pruned_copy(dense, config),
            cycle(images[: len(images) // batch_size * batch_size].split(batch_size)),
        )
        runs[name] = lambda model=model, batches=batches: model(next(batches))
    timings = time_interleaved(runs, batch_size, repeats=rounds, warmup=2)
    ratios = {name: speed_ratio(timing, timings[FIXED]) for name, timing in timings.items()}
    return [
        {
            "variant": name, "batch": batch_size, "images_per_second": timing.images_per_second,
            "vs_fixed": ratios[name].median, "low": ratios[name].low, "high": ratios[name].high, "rounds": rounds,
        }
        for name, timing in timings.items()
    ]  # fmt: skip


def loaded(images: Any, transform: Any) -> tuple[Tensor, Tensor]:
    """All images of a list, in an order drawn once, so that batches are mixed."""
    batches = list(evaluation_loader(images, transform, 64))
    pixels, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return pixels[order], labels[order]


def tables(record: Mapping[str, Any]) -> str:
    """The record in Markdown."""
    head = ["ρ", "criterion", "schedule", "GFLOPs", "top-1 %", "less that of", "difference", "images that differ"]
    lines = [
        [
            f"{r['keep_rate']:g}", r["criterion"], r["schedule"], f"{r['gflops']:.3f}",
            f"{r['top1']:.2f} ± {r['top1_error']:.2f}", r["against"],
            "" if r["difference"] is None else f"{r['difference']:+.2f} ± {r['difference_error']:.2f}",
            "" if r["differing"] is None else str(r["differing"]),
        ]
        for r in record["rows"]
    ]  # fmt: skip
    speed = [
        [
            f"{t['keep_rate']:g}", t["variant"], str(t["batch"]), f"{t['images_per_second']:.0f}",
            f"{t['vs_fixed']:.3f}" + ("" if t["low"] is None else f" [{t['low']:.3f} … {t['high']:.3f}]"),
        ]
        for t in record["timings"]
    ]  # fmt: skip
    about = record["about"]
    return (
        f"# {about['data']}, {about['size']} px, {about['images']} test images, without training\n\n"
        + markdown_table(head, lines)
        + "\nSpeed, Rényi of order 2, in turns on the same test images; ratios to the fixed rate, 95 % intervals:\n\n"
        + markdown_table(["ρ", "variant", "batch", "images/s", "× fixed"], speed)
        + f"\nSettings: {json.dumps(about)}\n"
    )


def main(
    data: Annotated[str, typer.Option(help="Name of the data set, for the record.")],
    root: Annotated[Path, typer.Option(help="Its folder.")],
    weights: Annotated[Path, typer.Option(help="The dense classifier.")],
    output: Annotated[Path, typer.Option(help="Folder of the record.")],
    size: int = 196,
    model: str = "vit_small_patch14_dinov2",
    keep_rates: str = "0.7,0.5",
    sizes: Annotated[
        str, typer.Option(help="Of the schedules by image, as shares of the patches; 1 is always one.")
    ] = ("0.25,0.5,0.75"),
    images: Annotated[int, typer.Option(help="Test images.")] = 1200,
    calibration: Annotated[int, typer.Option(help="Training images that thresholds are calibrated on.")] = 256,
    test_batch: Annotated[int, typer.Option(help="Images per pass, which share a budget.")] = 64,
    batches: str = "1,8,64",
    rounds: int = 20,
) -> None:
    """Measure, and write the record."""
    began = time.monotonic()
    dense = ModelSpec(model, str(weights), 0.0).build(None, size, strict=True).eval()
    opened = listed(data, root, train_limit=calibration, test_limit=images)
    transform = evaluation_transform_of(dense, size)
    unlabelled, _ = loaded(opened.train, transform)
    test = loaded(opened.test, transform)
    rows, timings = [], []
    for rate in map(float, keep_rates.split(",")):
        found = {
            (criterion, schedule): config
            for criterion, schedule, config in variants(dense, unlabelled, rate, tuple(map(float, sizes.split(","))))
        }
        typer.echo(f"ρ = {rate}: calibrated after {time.monotonic() - began:.0f} s")
        rows += [asdict(row) for row in rows_of(dense, found, rate, test, test_batch)]
        by_order = {schedule: config for (criterion, schedule), config in found.items() if criterion == "renyi-2"}
        by_order = {"dense": None, **by_order, BY_IMAGE: found[BY_IMAGE, FIXED]}
        for batch in map(int, batches.split(",")):
            measured = timed(dense, by_order, test[0], batch, rounds)
            timings += [{"keep_rate": rate, **line} for line in measured]
        typer.echo(f"ρ = {rate}: measured after {time.monotonic() - began:.0f} s")
    about = {
        "data": data, "size": size, "model": model, "images": len(test[0]), "calibration": len(unlabelled),
        "sizes": sizes, "test_batch": test_batch, "machine": environment("cpu"),
    }  # fmt: skip
    record = {"about": about, "rows": rows, "timings": timings}
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "per-image.json", json.dumps(record, indent=1) + "\n")
    write_text(output / "per-image.md", tables(record))


if __name__ == "__main__":
    typer.run(main)
