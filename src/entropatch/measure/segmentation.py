"""How well and how fast a `Segmenter` makes maps: mean IoU, multiply-adds and images/s, dense beside pruned."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from entropatch.config import PruneConfig
from entropatch.data.loaders import data_config
from entropatch.data.mask_folders import MaskedImages, segmentation_transform
from entropatch.measure import count_flops, time_interleaved
from entropatch.measure.evaluation import Speed
from entropatch.records.mean_iou import Counts, mean_iou, mean_iou_difference, pixel_counts
from entropatch.records.tables import MISSING, markdown_table, plus_minus
from entropatch.segmenter import Segmenter, enlarged
from entropatch.surgery import is_pruned, prune_, trace, unprune_

COUNTED = 64  # images whose mean multiply-adds are taken, where images keep different numbers of patches


def evaluate_segmentation(
    segmenter: Segmenter,
    data: MaskedImages,
    settings: Mapping[str, PruneConfig | None],
    *,
    image_size: int,
    device: str | torch.device = "cpu",
    batch_size: int = 8,
    speed: Speed | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[dict[str, Any]]:
    """Test a segmenter under several pruning settings, in one pass over the images and with one set of weights.

    Each image is resized to the square that the model sees; its map is enlarged to the mask's own size, where every
    pixel that counts is compared.

    Args:
        segmenter: left as it is; what it is pruned by does not matter here, but weights of a method's own that it has.
        data: images and masks.
        settings: what to prune, by the name of the row; None is the dense model.
        image_size, device, batch_size: side of the square input; where and in which portions to run.
        speed: measure throughput too, on the first images, maps of the input's size included; None leaves it out.
        on_step: called after each batch.

    Returns:
        One record per setting: name, keep_rate, miou and its standard error over images (miou_se, miou_low, miou_high),
        to_dense and to_dense_se, the paired difference to the dense row (None without one), gflops (10⁹ multiply-adds
        per image; the mean over the first 64 where their numbers differ), uncounted, patches_left (mean, behind the
        last pruning block; None for dense), images, and with `speed` images_per_second, p50_ms, p95_ms.

    Raises:
        ValueError: no settings. ImageError, MaskError: a file that cannot be used; segmentation skips none.
        UnsupportedModelError: a method that the model cannot have.
    """
    if not settings:
        raise ValueError("settings must name at least one row to evaluate, but got none.")
    device = torch.device(device)
    models = {name: variant(segmenter.to(device), config).eval() for name, config in settings.items()}
    counts, left = count_pixels(models, data, image_size, device, batch_size, on_step)
    timings = {}
    if speed is not None:
        images, _ = _batch(segmenter, data, range(min(speed.batch_size, len(data))), image_size, device)
        runs = {name: (lambda model=model: model(images)) for name, model in models.items()}
        timings = time_interleaved(runs, len(images), repeats=speed.repeats, warmup=speed.warmup, device=device)
    dense = next((name for name, config in settings.items() if config is None), None)
    records = []
    for name, config in settings.items():
        found = mean_iou(counts[name])
        apart = None if dense in (None, name) else mean_iou_difference(counts[name], counts[dense])
        by_image = config is not None and config.schedule.per_image
        gflops, uncounted = _gflops(models[name], data, image_size, device, batch_size, COUNTED if by_image else 1)
        record = {
            "name": name,
            "keep_rate": None if config is None or not config.schedule.uses_keep_rate else config.keep_rate,
            "miou": found.value,
            "miou_se": found.standard_error,
            "miou_low": found.low,
            "miou_high": found.high,
            "to_dense": None if apart is None else apart.value,
            "to_dense_se": None if apart is None else apart.standard_error,
            "gflops": gflops,
            "uncounted": uncounted,
            "patches_left": left[name],
            "images": len(data),
        }
        if name in timings:
            record |= {key: getattr(timings[name], key) for key in ("images_per_second", "p50_ms", "p95_ms")}
        records.append(record)
    return records


def count_pixels(
    models: Mapping[str, nn.Module],
    data: MaskedImages,
    image_size: int,
    device: str | torch.device = "cpu",
    batch_size: int = 8,
    on_step: Callable[[], None] | None = None,
) -> tuple[dict[str, Counts], dict[str, float | None]]:
    """Pixels by image and class (`pixel_counts`), and the mean number of patches left, of models by name.

    The models run in evaluation mode and without gradients; their modes are put back. Errors as of
    `evaluate_segmentation`.
    """
    first: Any = next(iter(models.values()))
    modes = {module: module.training for model in models.values() for module in model.modules()}
    counts: dict[str, list[Counts]] = {name: [] for name in models}
    left: dict[str, list[float]] = {name: [] for name in models}
    try:
        for model in models.values():
            model.eval()
        with torch.no_grad():
            for begin in range(0, len(data), batch_size):
                rows = range(begin, min(begin + batch_size, len(data)))
                images, masks = _batch(first, data, rows, image_size, device)
                for name, model in models.items():
                    logits, patches = _run(model, images)
                    left[name] += patches
                    for one, mask in zip(logits, masks, strict=True):
                        predicted = enlarged(one[None], mask.shape).argmax(1)[0].cpu().numpy()
                        counts[name].append(pixel_counts(predicted, mask, data.classes))
                if on_step is not None:
                    on_step()
    finally:
        for module, training in modes.items():
            module.training = training
    means = {name: float(np.mean(found)) if found else None for name, found in left.items()}
    return {name: np.stack(found) for name, found in counts.items()}, means


def variant(segmenter: Segmenter, config: PruneConfig | None) -> Segmenter:
    """A copy that shares its weights, pruned as the config says; stock for None."""
    shared = {id(tensor): tensor for tensor in chain(segmenter.parameters(), segmenter.buffers())}
    made = copy.deepcopy(segmenter, shared)
    if config is not None:
        prune_(made, config)
    elif is_pruned(made):
        unprune_(made)
    return made


def segmentation_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as a Markdown table."""
    columns = ["", "mIoU", "to dense", "GFLOPs", "patches left"]
    columns += ["images/s"] if "images_per_second" in records[0] else []
    rows = []
    for record in records:
        apart, left = record["to_dense"], record["patches_left"]
        cells: list[object] = [record["name"], plus_minus(record["miou"], record["miou_se"])]
        cells.append(MISSING if apart is None else plus_minus(apart, record["to_dense_se"], signed=True))
        cells += [f"{record['gflops']:.3f}", MISSING if left is None else f"{left:.1f}"]
        cells += [f"{record['images_per_second']:.1f}"] if "images_per_second" in records[0] else []
        rows.append(cells)
    return markdown_table(columns, rows)


def _run(model: Any, images: Tensor) -> tuple[Tensor, list[float]]:
    """Logits on the grid of patches, and how many patches of each image are left."""
    if not is_pruned(model):
        return model.patch_logits(images), []
    with trace(model) as recorded:
        logits = model.patch_logits(images)
    last = recorded.counts[-1] if recorded.counts else []
    return logits, [float(count) for count in (last if isinstance(last, list) else [last] * len(images))]


def _gflops(
    model: nn.Module, data: MaskedImages, image_size: int, device: torch.device, batch_size: int, images: int
) -> tuple[float, list[str]]:
    total, uncounted, images = 0.0, set(), min(images, len(data))
    for begin in range(0, images, batch_size):
        rows = range(begin, min(begin + batch_size, images))
        flops = count_flops(model, _batch(model, data, rows, image_size, device)[0])
        total += flops.total * len(rows)
        uncounted |= set(flops.uncounted)
    return total / images / 1e9, sorted(uncounted)


def _batch(
    segmenter: Any, data: MaskedImages, rows: Sequence[int], image_size: int, device: str | torch.device
) -> tuple[Tensor, list[np.ndarray]]:
    """Images as the model sees them, and masks of their own sizes."""
    config = data_config(segmenter.backbone, image_size)
    transform = segmentation_transform(image_size, config["mean"], config["std"])
    images, masks = [], []
    for row in rows:
        image, mask = data.pair(row)
        images.append(transform(image, mask)[0])
        masks.append(mask)
    return torch.stack(images).to(device), masks
