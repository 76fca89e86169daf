"""Mean intersection over union from counts of pixels per image, with its standard error over images by bootstrap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from entropatch.records.uncertainty import LEVEL, SEED, Estimate

RESAMPLES = 2_000
TOGETHER = 100  # resamples at once, so that memory stays small

Counts = NDArray[np.int64]


def pixel_counts(predicted: NDArray[np.integer], mask: NDArray[np.integer], classes: int, ignored: int = 255) -> Counts:
    """Pixels of one image that count, by class: (3, classes), int64: predicted rightly, predicted, and there.

    Raises ValueError where the two differ in shape.
    """
    if predicted.shape != mask.shape:
        raise ValueError(f"prediction and mask must be of one shape, but are {predicted.shape} and {mask.shape}.")
    counted = mask != ignored
    p, m = predicted[counted], mask[counted]
    return np.stack([np.bincount(one, minlength=classes)[:classes] for one in (p[p == m], p, m)]).astype(np.int64)


def iou_by_class(counts: Counts) -> NDArray[np.float64]:
    """100 · Σ right / (Σ predicted + Σ there - Σ right) of each class over all images; NaN of a class that is neither
    predicted nor there. Counts (images, 3, classes) as of `pixel_counts`."""
    return _ious(counts.sum(0)[None])[0]


def mean_iou(counts: Counts, *, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """The mean over classes of `iou_by_class`, in percent, classes of NaN left out.

    The standard error is the deviation over resamples of the images, with replacement; the interval their percentiles.
    It tells how the figure varies with the test images, not with training.

    Raises:
        ValueError: no image, or no pixel that counts.
    """
    _check(counts)
    value = float(_mean(iou_by_class(counts)))
    return _estimate(value, _resampled([counts], resamples, seed)[0], len(counts))


def mean_iou_difference(a: Counts, b: Counts, *, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Mean IoU of a less that of b, both on the same images in the same order; the resamples too are the same.

    Raises:
        ValueError: other images or classes, none, or no pixel that counts.
    """
    _check(a)
    _check(b)
    if a.shape != b.shape or (a[:, 2] != b[:, 2]).any():
        raise ValueError("a and b must be of the same images and classes, but their masks differ.")
    value = float(_mean(iou_by_class(a)) - _mean(iou_by_class(b)))
    first, second = _resampled([a, b], resamples, seed)
    return _estimate(value, first - second, len(a))


def _resampled(counts: list[Counts], resamples: int, seed: int) -> list[NDArray[np.float64]]:
    """The mean IoU of each in every resample, the same images drawn for all."""
    random, images = np.random.default_rng(seed), len(counts[0])
    found: list[list[NDArray[np.float64]]] = [[] for _ in counts]
    for begin in range(0, resamples, TOGETHER):
        drawn = random.multinomial(images, np.full(images, 1 / images), min(TOGETHER, resamples - begin))
        for one, into in zip(counts, found, strict=True):
            summed = np.einsum("ri,ikc->rkc", drawn.astype(np.float64), one.astype(np.float64), optimize=True)
            into.append(_mean(_ious(summed)))
    return [np.concatenate(parts) if parts else np.zeros(0) for parts in found]


def _ious(sums: NDArray) -> NDArray[np.float64]:
    """(…, 3, classes) -> (…, classes), in percent."""
    right, predicted, there = (sums[..., i, :].astype(np.float64) for i in range(3))
    union = predicted + there - right
    return np.divide(100 * right, union, out=np.full(union.shape, np.nan), where=union > 0)


def _mean(ious: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the classes that are not NaN; NaN where all are."""
    there = np.isfinite(ious)
    number = there.sum(-1)
    return np.where(there, ious, 0.0).sum(-1) / np.where(number, number, np.nan)


def _estimate(value: float, drawn: NDArray[np.float64], images: int) -> Estimate:
    drawn = drawn[np.isfinite(drawn)]  # a resample of images without any pixel that counts has none
    if images < 2 or len(drawn) < 2:
        return Estimate(value, 0.0, value, value, images, 1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(drawn.std(ddof=1)), float(low), float(high), images, 1)


def _check(counts: Counts) -> None:
    if counts.ndim != 3 or counts.shape[1] != 3 or not len(counts):
        raise ValueError(f"counts must be (images, 3, classes), of at least one image, but got {counts.shape}.")
    if not counts[:, 2].sum():
        raise ValueError("no pixel of these masks counts, so there is no IoU.")
