"""Arrays on the patch grid as pixels over the image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from entropatch.figures.style import ENTROPY_COLOURS

LUMINANCE = np.array([0.299, 0.587, 0.114])


def scale_limits(maps: Iterable[np.ndarray]) -> tuple[float, float]:
    """Ends of the colour scale: the 1st and 99th percentile, so that no single patch sets it."""
    low, high = (float(x) for x in np.percentile(np.concatenate([np.ravel(one) for one in maps]), (1, 99)))
    return (low, high) if high - low > 1e-3 else (low - 0.05, high + 0.05)


def heat(crop: np.ndarray, values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """The map (H, W) in colours, with the image's light and dark faintly in it: (height, width, 3) in 0 … 1.

    Only what deviates from the patch's own mean is laid over it, so that its colour stays that of the colour bar.
    """
    import matplotlib

    low, high = limits
    colours = matplotlib.colormaps[ENTROPY_COLOURS]((values - low) / (high - low))[..., :3]
    grey = crop / 255 @ LUMINANCE
    detail = grey - _to_pixels(_patch_means(grey, values.shape), crop)
    return np.clip(_to_pixels(colours, crop) + 0.5 * detail[..., None], 0, 1)


def remaining(crop: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The image with the patches that are not kept faded to grey: (height, width, 3) in 0 … 1."""
    grey = crop / 255 @ LUMINANCE
    faded = np.repeat((0.72 + 0.16 * grey)[..., None], 3, axis=2)
    return np.where(_to_pixels(kept, crop)[..., None], crop / 255, faded)


def _cells(size: int, patches: int) -> np.ndarray:
    """The patch each of `size` pixels along one side belongs to."""
    return np.arange(size) * patches // size


def _to_pixels(values: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Values per patch (H, W, …) as values per pixel (height, width, …) of the crop."""
    rows, columns = _cells(crop.shape[0], values.shape[0]), _cells(crop.shape[1], values.shape[1])
    return values[rows[:, None], columns[None]]


def _patch_means(pixels: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Mean of the pixels (height, width) of each patch: (H, W)."""
    rows, columns = _cells(pixels.shape[0], grid[0]), _cells(pixels.shape[1], grid[1])
    patch = (rows[:, None] * grid[1] + columns[None]).ravel()
    return (np.bincount(patch, pixels.ravel()) / np.bincount(patch)).reshape(grid[:2])
