"""How well and how fast: top-1, top-5, multiply-adds and images per second, dense beside pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from entropatch.config import PruneConfig
from entropatch.data.base import DataSet, listing_hash
from entropatch.data.loaders import Batch, evaluation_loader, evaluation_transform_of
from entropatch.measure import count_flops, time_interleaved
from entropatch.measure.comparing import compared
from entropatch.measure.variants import pruned_copy
from entropatch.models.card import card_of
from entropatch.records.correct import Bits, CorrectImages

# What autocast computes in, by the precision asked for; None is without it.
AUTOCAST: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _none() -> Bits:
    return np.zeros(0, bool)


@dataclass(frozen=True)
class Correct:
    """Counts of one pass over a test set, or of one process's share of it.

    Attributes:
        top1, top5: images whose class was the first, or among the first five, of the scores.
        images: images tested. Damaged ones are not among them.
        damaged: names of the images that could not be read.
        right: which images' class was the first, (images of the list,); False where not tested.
        tested: which images could be read; these two in the order of the list.
    """

    top1: int
    top5: int
    images: int
    damaged: tuple[str, ...] = ()
    right: Bits = field(default_factory=_none, compare=False, repr=False)
    tested: Bits = field(default_factory=_none, compare=False, repr=False)

    @property
    def top1_percent(self) -> float:
        """100 · top1 / images."""
        return 100 * self.top1 / self.images

    @property
    def top5_percent(self) -> float:
        """100 · top5 / images."""
        return 100 * self.top5 / self.images


@dataclass(frozen=True)
class Speed:
    """How throughput is measured: `repeats` timed calls on `batch_size` images, after `warmup` untimed ones."""

    batch_size: int = 16
    repeats: int = 10
    warmup: int = 2


def evaluate(
    model: nn.Module,
    data: DataSet,
    settings: Mapping[str, PruneConfig | None],
    *,
    image_size: int,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    batch_size: int = 64,
    workers: int = 0,
    speed: Speed | None = None,
    on_step: Callable[[], None] | None = None,
    on_correct: Callable[[CorrectImages], None] | None = None,
) -> list[dict[str, Any]]:
    """Test a model under several pruning settings, in one pass over the images and with one set of weights.

    Args:
        model: a stock timm model for these classes. One of 1,000 classes may be tested on a part of ImageNet-1k: its
            scores of the other classes are then left out.
        data: as `entropatch.data.open_data` gives it; its test split is used.
        settings: what to prune, by the name of the row; None is the dense model.
        image_size: side of the square input.
        device: where to run.
        precision: "float32"; or "bfloat16" or "float16" for autocast.
        batch_size: images per forward pass.
        workers: loading processes.
        speed: measure throughput too; None leaves it out.
        on_step: called (batches of the test set) + (calls timed) times; `count_steps` says how many that is.
        on_correct: given which images came out right under each setting.

    Returns:
        One record per setting: name, keep_rate (None if dense, or where the schedule takes none), top1, top5 (percent),
        their errors and differences to dense and random, as `entropatch.measure.comparing.compared` names them, gflops
        (10⁹ multiply-adds per image; of a schedule by image the mean over the first batch), uncounted (operators left
        out of that), images, damaged (how many could not be read), and with `speed` images_per_second, p50_ms and
        p95_ms.

    Raises:
        ValueError: no settings; a model without classifier or for other classes; an unknown precision; no sound image.
        UnsupportedModelError: the model cannot be pruned.
    """
    if not settings:
        raise ValueError("settings must name at least one row to evaluate, but got none.")
    if precision not in AUTOCAST:
        raise ValueError(f"precision must be one of {', '.join(AUTOCAST)}, but got {precision!r}.")
    device, step = torch.device(device), on_step or (lambda: None)
    classes = class_places(model, data.classes)
    model = model.to(device).eval()
    models = {name: pruned_copy(model, config) for name, config in settings.items()}
    transform = evaluation_transform_of(model, image_size)
    batches = evaluation_loader(data.test, transform, batch_size, workers=workers, pin_memory=device.type == "cuda")
    dtype, timings = AUTOCAST[precision], {}
    with nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype):
        counts = count_correct(models, batches, device, classes=classes, on_batch=step)
        if speed is not None:
            images = torch.randn(
                speed.batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)
            ).to(device)
            runs = {name: (lambda variant=variant: variant(images)) for name, variant in models.items()}
            timings = time_interleaved(
                runs, speed.batch_size, repeats=speed.repeats, warmup=speed.warmup, device=device, on_step=step
            )
    first = next(iter(counts.values()))
    if not first.images:
        raise ValueError(f"no image could be read, of {len(first.damaged)}; the first: {first.damaged[0]}.")
    correct = CorrectImages(listing_hash(data.test), first.tested, {name: one.right for name, one in counts.items()})
    errors = compared(settings, correct)
    records = []
    for name, variant in models.items():
        counted_on = _counted_on(settings[name], batches, image_size).to(device)
        record = _record(name, settings[name], variant, counts[name], errors[name], counted_on)
        if name in timings:
            record |= {key: getattr(timings[name], key) for key in ("images_per_second", "p50_ms", "p95_ms")}
        records.append(record)
    if on_correct is not None:
        on_correct(correct)
    return records


def count_steps(data: DataSet, settings: int, batch_size: int = 64, speed: Speed | None = None) -> int:
    """How often `evaluate` calls `on_step`."""
    timed = 0 if speed is None else settings * (speed.repeats + speed.warmup)
    return -(-len(data.test) // batch_size) + timed


def count_correct(
    models: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    device: str | torch.device = "cpu",
    *,
    classes: Tensor | None = None,
    on_batch: Callable[[], None] | None = None,
) -> dict[str, Correct]:
    """Test models on the same images, in eval mode and without gradients; their modes are put back afterwards.

    Ties between classes go to the lower class, on every device, and a score that is NaN never wins.

    Args:
        models: by name; each takes images (batch, 3, H, W) to scores (batch, classes).
        batches: as `entropatch.data.evaluation_loader` yields them.
        device: where the models are.
        classes: the scores to look at, in the order of the labels; all of them when None.
        on_batch: called after each batch.
    """
    modes = {module: module.training for model in models.values() for module in model.modules()}
    sums = {name: torch.zeros(2, dtype=torch.long, device=device) for name in models}
    right: dict[str, list[Tensor]] = {name: [] for name in models}
    sound: list[Tensor] = []
    images, damaged = 0, []
    try:
        for model in models.values():
            model.eval()
        with torch.no_grad():  # not inference mode: what a model caches must stay usable in training
            for batch in batches:
                damaged += batch.damaged
                images += len(batch.labels)
                sound.append(torch.ones(len(batch.labels), dtype=torch.bool) if batch.sound is None else batch.sound)
                if len(batch.labels):
                    pixels = batch.images.to(device, non_blocking=True)
                    labels = batch.labels.to(device, non_blocking=True)
                    for name, model in models.items():
                        scores = model(pixels) if classes is None else model(pixels)[:, classes]
                        place = _place(scores.float(), labels)
                        sums[name] += torch.stack(((place < 1).sum(), (place < 5).sum()))
                        right[name].append(place < 1)
                if on_batch is not None:
                    on_batch()
    finally:
        for module, training in modes.items():
            module.training = training
    tested = torch.cat(sound).numpy() if sound else _none()
    found = {}
    for name, counts in sums.items():
        bits = np.zeros(len(tested), bool)
        bits[tested] = torch.cat(right[name]).cpu().numpy() if right[name] else False
        found[name] = Correct(int(counts[0]), int(counts[1]), images, tuple(damaged), bits, tested)
    return found


def class_places(model: nn.Module, classes: tuple[str, ...]) -> Tensor | None:
    """Which of the model's scores stand for these classes, in their order; None if all do as they are.

    Raises:
        ValueError: the model has no classifier, or one for other classes.
    """
    card = card_of(model)
    labels = [_plain(label) for label in (card.labels if card is not None else None) or ()]
    if labels and all(labels.count(_plain(name)) == 1 for name in classes):
        places = [labels.index(_plain(name)) for name in classes]
        everything = places == list(range(len(labels)))
        return None if everything else torch.tensor(places, device=next(model.parameters()).device)
    outputs = getattr(model, "num_classes", len(classes))
    if outputs == len(classes) and (not labels or outputs == 1000):
        return None
    if outputs == 1000:
        from timm.data.imagenet_info import ImageNetInfo

        numbers = {name: i for i, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
        if all(name in numbers for name in classes):
            device = next(model.parameters()).device
            return torch.tensor([numbers[name] for name in classes], device=device)
    have = f"a classifier for {outputs} classes" if outputs else "no classifier"
    names = f" ({card.labels[0]}, …)" if card is not None and card.labels else ""
    raise ValueError(
        f"the model has {have}{names}, but the data set has {len(classes)} classes ({classes[0]}, …); fine-tune it on "
        "that data set first (entropatch finetune)."
    )


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _counted_on(config: PruneConfig | None, batches: Iterable[Batch], image_size: int) -> Tensor:
    """What multiply-adds are counted on: where images keep different numbers of patches the first sound test images."""
    images = first_sound(batches) if config is not None and config.schedule.per_image else None
    return torch.zeros(1, 3, image_size, image_size) if images is None else images


def first_sound(batches: Iterable[Batch]) -> Tensor | None:
    """The images of the first batch of which one could be read; None if none could."""
    return next((batch.images for batch in batches if len(batch.labels)), None)


def _record(
    name: str,
    config: PruneConfig | None,
    model: nn.Module,
    counts: Correct,
    errors: Mapping[str, Any],
    counted_on: Tensor,
) -> dict[str, Any]:
    flops = count_flops(model, counted_on)
    return {
        "name": name,
        "keep_rate": None if config is None or not config.schedule.uses_keep_rate else config.keep_rate,
        "top1": counts.top1_percent,
        "top5": counts.top5_percent,
        "gflops": flops.total / 1e9,
        "uncounted": sorted(flops.uncounted),
        "images": counts.images,
        "damaged": len(counts.damaged),
        **errors,
    }


def _place(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the right one: (batch, classes), (batch,) -> (batch,)."""
    scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    right = scores.gather(1, labels[:, None])
    lower = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    before = ((scores > right) | ((scores == right) & lower)).sum(1)
    # Without a finite score the right class has no place at all.
    return before + torch.isneginf(right[:, 0]) * scores.shape[1]
