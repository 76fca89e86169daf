"""Mean IoU against plain loops over pixels, and its error against a plain bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from entropatch.records.mean_iou import iou_by_class, mean_iou, mean_iou_difference, pixel_counts

CLASSES = 4


def pictures(seed: int, images: int = 5) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Masks of several sizes, and predictions that are right in most pixels; class 3 never occurs."""
    draw = np.random.default_rng(seed)
    masks = [draw.choice([0, 1, 2, 255], (6 + i, 9), p=[0.5, 0.2, 0.2, 0.1]).astype(np.uint8) for i in range(images)]
    guesses = [np.where(draw.random(mask.shape) < 0.7, mask % 255, draw.integers(0, 3, mask.shape)) for mask in masks]
    return guesses, masks


def by_loops(guesses: list[np.ndarray], masks: list[np.ndarray]) -> float:
    found = []
    for number in range(CLASSES):
        both = either = 0
        for guess, mask in zip(guesses, masks, strict=True):
            for g, m in zip(guess.ravel().tolist(), mask.ravel().tolist(), strict=True):
                if m != 255:
                    both += g == number and m == number
                    either += number in (g, m)
        if either:
            found.append(100 * both / either)
    return sum(found) / len(found)


def test_it_is_that_of_loops_over_the_pixels() -> None:
    guesses, masks = pictures(0)
    counts = np.stack([pixel_counts(g, m, CLASSES) for g, m in zip(guesses, masks, strict=True)])
    found = mean_iou(counts)
    assert found.value == pytest.approx(by_loops(guesses, masks))
    assert np.isnan(iou_by_class(counts)[3])
    assert found.low < found.value < found.high
    assert 0 < found.standard_error < 20


def test_its_error_is_that_of_a_plain_bootstrap() -> None:
    pairs = [pictures(seed, 1) for seed in range(30)]
    guesses, masks = [g[0] for g, _ in pairs], [m[0] for _, m in pairs]
    counts = np.stack([pixel_counts(g, m, CLASSES) for g, m in zip(guesses, masks, strict=True)])
    draw = np.random.default_rng(7)
    again = [np.nanmean(iou_by_class(counts[draw.integers(0, 30, 30)])) for _ in range(2000)]
    assert mean_iou(counts).standard_error == pytest.approx(np.std(again, ddof=1), rel=0.08)


def test_a_difference_is_paired() -> None:
    guesses, masks = pictures(3, 20)
    a = np.stack([pixel_counts(g, m, CLASSES) for g, m in zip(guesses, masks, strict=True)])
    same = mean_iou_difference(a, a)
    assert (same.value, same.standard_error) == (0.0, 0.0)
    guesses[4][0, :3] = (guesses[4][0, :3] + 1) % 3  # a few pixels of one image
    b = np.stack([pixel_counts(g, m, CLASSES) for g, m in zip(guesses, masks, strict=True)])
    found = mean_iou_difference(b, a)
    assert found.value == pytest.approx(mean_iou(b).value - mean_iou(a).value)
    assert 0 < found.standard_error < mean_iou(a).standard_error / 3
    with pytest.raises(ValueError, match="of the same images"):
        mean_iou_difference(a, a[::-1])


def test_without_pixels_there_is_none() -> None:
    nothing = pixel_counts(np.zeros((2, 2), int), np.full((2, 2), 255), CLASSES)
    with pytest.raises(ValueError, match="no pixel of these masks counts"):
        mean_iou(nothing[None])
    with pytest.raises(ValueError, match="at least one image"):
        mean_iou(nothing[None][:0])
    with pytest.raises(ValueError, match="of one shape"):
        pixel_counts(np.zeros((2, 2), int), np.zeros((2, 3), int), CLASSES)
    only = pixel_counts(np.zeros((2, 2), int), np.zeros((2, 2), int), CLASSES)
    assert mean_iou(np.stack([only, nothing])).value == 100
