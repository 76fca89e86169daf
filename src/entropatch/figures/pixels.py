"""Arrays on the patch grid as pixels over the image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from entropatch.figures.style import ENTROPY_COLOURS

LUMINANCE = np.array([0.299, 0.587, 0.114])
# A pruned patch: its grey levels, how much darker its hatching is, the grey of the line around what is kept.
FADED, HATCH_DEPTH, OUTLINE = (0.70, 0.92), 0.28, 0.15
# A colour scale for each heat map, since pruning ranks the patches within a block; or one for all of a page.
SCALES = ("panel", "shared")
SHOWN_WIDTH, HATCH_EVERY = 224, 7  # pixels


def scale_limits(maps: Iterable[np.ndarray]) -> tuple[float, float]:
    """Ends of the colour scale: the 1st and 99th percentile, so that no single patch sets it."""
    low, high = (float(x) for x in np.percentile(np.concatenate([np.ravel(one) for one in maps]), (1, 99)))
    return (low, high) if high - low > 1e-3 else (low - 0.05, high + 0.05)


def check_scale(scale: str) -> None:
    """Raise ValueError unless `scale` is one of `SCALES`."""
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, but got {scale!r}.")


def limits_of_each(maps: Sequence[np.ndarray], scale: str) -> list[tuple[float, float]]:
    """The ends of the colour scale of each map: its own where `scale` is "panel", those of all where it is "shared".

    Raises:
        ValueError: another `scale`.
    """
    check_scale(scale)
    return [scale_limits([one]) for one in maps] if scale == "panel" else [scale_limits(maps)] * len(maps)


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


def remaining(crop: np.ndarray, kept: np.ndarray, stands: np.ndarray | None = None) -> np.ndarray:
    """The image with the patches that are gone faded to grey, hatched and outlined: (height, width, 3) in 0 … 1.

    Grey alone would not show on a pale or grey photograph. What is kept is the image itself, pixel for pixel; hatching
    and outline lie on the faded patches only. A patch that was merged into another's token is neither kept nor gone: it
    has the mean colour of all patches of that token, with a line where it borders on those of another. One whose token
    waits beside the blocks is drawn as gone.

    Args:
        crop: the pixels the model saw, (height, width, 3), uint8.
        kept: whether a patch's own token is there, (H, W), bool.
        stands: number of the patch whose token stands for each, (H, W); -1 where none does. None where nothing merges.
    """
    grey = crop / 255 @ LUMINANCE
    pixels = _to_pixels(kept, crop)
    faded = FADED[0] + (FADED[1] - FADED[0]) * grey
    faded = np.where(_hatching(crop.shape[:2]), faded - HATCH_DEPTH, faded)
    faded[_beside(pixels, round(_unit(crop.shape[1])) or 1)] = OUTLINE
    shown = np.where(pixels[..., None], crop / 255, faded[..., None])
    if stands is None:
        return shown
    waiting = (stands == np.arange(stands.size).reshape(stands.shape)) & ~kept
    return _with_merged(shown, crop, pixels, _to_pixels(np.where(waiting, -1, stands), crop))


def _with_merged(shown: np.ndarray, crop: np.ndarray, kept: np.ndarray, stands: np.ndarray) -> np.ndarray:
    """`shown` with the merged patches on it; `kept` and `stands` as of `remaining`, per pixel, -1 for what waits."""
    merged = (stands >= 0) & ~kept
    if not merged.any():
        return shown
    groups = np.maximum(stands, 0).ravel()
    weights = (stands >= 0).ravel()
    sizes = np.maximum(np.bincount(groups, weights), 1)
    channels = [np.bincount(groups, weights * crop[..., channel].ravel()) / sizes / 255 for channel in range(3)]
    means = np.stack(channels, axis=-1)[groups].reshape(crop.shape)
    border = np.zeros_like(merged)
    border[1:] |= stands[1:] != stands[:-1]
    border[:, 1:] |= stands[:, 1:] != stands[:, :-1]
    means[border] *= 1 - HATCH_DEPTH
    return np.where(merged[..., None], means, shown)


def _unit(width: int) -> float:
    """Pixels of a crop to one of a picture as figures and the page show it, 224 wide."""
    return width / SHOWN_WIDTH


def _hatching(size: tuple[int, int]) -> np.ndarray:
    """Slanting lines over the whole crop, the same at every size on the page: (height, width), bool."""
    period = max(4, round(HATCH_EVERY * _unit(size[1])))
    rows, columns = np.arange(size[0]), np.arange(size[1])
    return (rows[:, None] + columns[None]) % period < max(1, round(period / 5))


def _beside(pixels: np.ndarray, width: int) -> np.ndarray:
    """Where a kept pixel lies at most `width` away along the rows or columns, of those not kept: (height, width)."""
    near = np.zeros_like(pixels)
    for step in range(1, width + 1):
        near[step:] |= pixels[:-step]
        near[:-step] |= pixels[step:]
        near[:, step:] |= pixels[:, :-step]
        near[:, :-step] |= pixels[:, step:]
    return near & ~pixels


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
