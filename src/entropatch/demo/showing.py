"""The demo: a real pretrained ViT-S, pruned by every method, measured for accuracy and speed, and shown on photographs.

Needs no network beyond the Python package index: weights, digits and photographs all come inside installed packages.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from entropatch.demo.folder import check_folder
from entropatch.demo.pictures import chosen_photographs, draw, several
from entropatch.demo.settings import FULL, MADE_BY, STEM, DemoSettings, Step, counter
from entropatch.demo.words import Record, accuracy_note, finding, make_records, shown_table, timing_note
from entropatch.extras import require
from entropatch.measure import Timing, count_flops, environment, time_interleaved
from entropatch.measure.linear_probe import Digits, linear_probe, load_digits, pooled_features
from entropatch.measure.variants import pruned_copy
from entropatch.models.encoder import NATIVE_IMAGE_SIZE, encoder_name, load_encoder, resized_encoder
from entropatch.records.tables import markdown_table, write_records


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured and wrote.

    Attributes:
        folder: where everything lies.
        files: what was written, tables first.
        records: one per row: method, label, keep_rate, accuracy and accuracy_error (percent of the held-out digits, and
            its standard error), gflops (10⁹ multiply-adds per image), images_per_second, p50_ms, p95_ms, vs_dense
            (ratio of images_per_second).
        findings: which method is ahead at each keep rate, in words.
        about: weights, how it was measured, settings, versions and hardware.
    """

    folder: Path
    files: list[Path]
    records: list[Record]
    findings: dict[float, str]
    about: dict[str, Any]


def run_demo(
    output: str | Path = "entropatch-demo",
    settings: DemoSettings = FULL,
    *,
    on_message: Callable[[str], None] = lambda _: None,
    on_step: Step = lambda phase, done, total: None,
) -> DemoResult:
    """Run the demo; write results.md, results.csv, results.json and the pictures into one folder.

    Args:
        output: the folder, made if missing. Files of an earlier demo there are replaced, others never touched.
        settings: `FULL`, `QUICK` or others.
        on_message: told in a line what happens before the measurement starts.
        on_step: told (phase, steps done, steps in all) for a progress bar; the phases come one after the other.

    Raises:
        ImportError: a package of the extra `demo` is missing; the message names it.
        WeightsError: the weights file is not the pinned one.
        OSError: the folder cannot be written, or holds a file of the same name that no demo wrote.
    """
    started = time.monotonic()
    for module in ("sklearn", "skimage", "matplotlib", "fvcore"):
        require(module, "demo")
    folder = Path(output)
    photographs = chosen_photographs(settings)
    pictures = {name: folder / f"{name}.png" for name in (*photographs, *several(photographs))}
    check_folder(folder, list(pictures.values()))
    encoder, source = load_encoder(NATIVE_IMAGE_SIZE, on_message)
    on_message(f"weights: {source}")
    digits = load_digits(settings.digits, settings.seed)
    hits = _measure_accuracy(resized_encoder(encoder, settings.digit_size), digits, settings, on_step)
    model = resized_encoder(encoder, settings.image_size)
    speed = _measure_speed(model, settings, on_step)
    draw(model, photographs, pictures, settings, encoder_name(source), on_step)
    records = make_records(settings.rows, hits, speed)
    found = {rate: finding(rate, settings.rows, hits) for rate in settings.keep_rates}
    about = {
        "made by": MADE_BY,
        **{f"keep rate {rate:g}": text for rate, text in found.items()},
        "digits": accuracy_note(digits, settings),
        "speed": timing_note(records, settings),
        "weights": source,
        "settings": json.dumps(asdict(settings)),
        **environment("cpu"),
        **{package: version(package) for package in ("torchvision", "scikit-learn", "scikit-image", "matplotlib")},
        "seconds": round(time.monotonic() - started, 1),
    }
    title = f"Patch pruning of {encoder_name(source)} on {len(digits)} digits"
    table = markdown_table(*shown_table(records))
    tables = write_records(records, folder, STEM, title=title, about=about, table=table)
    return DemoResult(folder, [*tables, *pictures.values()], records, found, about)


def _measure_accuracy(model: nn.Module, digits: Digits, settings: DemoSettings, on_step: Step) -> dict[str, np.ndarray]:
    """Which held-out digits each row gets right: (held out,), bool."""
    configs = {name: row.config() for name, row in settings.rows.items()}
    batches = math.ceil(len(digits) / settings.digit_batch_size)
    step = counter("accuracy", len(configs) * (batches + 1), on_step)
    features = pooled_features(model, configs, digits.images, batch_size=settings.digit_batch_size, on_step=step)
    hits = {}
    for name, feature in features.items():
        hits[name] = linear_probe(feature, digits)
        step()
    return hits


def _measure_speed(model: nn.Module, settings: DemoSettings, on_step: Step) -> dict[str, tuple[float, Timing]]:
    """10⁹ multiply-adds per image, and the time of a batch, of each row; the rows take turns."""
    shape = (settings.batch_size, 3, settings.image_size, settings.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed))
    models = {name: pruned_copy(model, row.config()) for name, row in settings.rows.items()}
    step = counter("GFLOPs", len(models), on_step)
    gflops = {}
    for name, pruned in models.items():
        gflops[name] = count_flops(pruned, images[:1]).total / 1e9
        step()
    timings = time_interleaved(
        {name: lambda pruned=pruned: pruned(images) for name, pruned in models.items()},
        settings.batch_size,
        repeats=settings.repeats,
        warmup=settings.warmup,
        on_step=counter("speed", (settings.warmup + settings.repeats) * len(models), on_step),
    )
    return {name: (gflops[name], timings[name]) for name in models}
