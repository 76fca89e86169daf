"""Does low attention entropy mark the foreground, in this model and on these images? Measured before it is trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from entropatch.attention import BlockAttention
from entropatch.criteria import ClassAttention, Renyi
from entropatch.data.images import cropped, to_tensor
from entropatch.data.masks import check_size, foreground_share, patch_means
from entropatch.extras import require
from entropatch.look.observation import observe
from entropatch.methods import find_method, renyi_method
from entropatch.schedule import default_blocks

# A patch is foreground if at least this share of it is.
SHARE = 0.5
PIXELS, EVIT = "pixels", "evit"
# A mean counts as above or below chance if it is so by this many of its standard errors.
ERRORS = 2.0


@dataclass(frozen=True)
class ForegroundCheck:
    """What `check_foreground` found.

    Attributes:
        records: one per score and block: score ("evit", "shannon", "renyi-2", …, "pixels"), label, block (0-based; None
            for "pixels", which knows no blocks), auroc (mean over images), standard_error (of that mean; None for one
            image), images.
        means: by score, the mean over all blocks: (auroc, standard_error).
        images: how many were measured.
        one_class: how many were skipped because all their patches are foreground, or none.
        pruning_blocks: the blocks the verdict looks at.
        verdict: one line, for the order with the highest mean.
        trusted: whether that verdict is to trust low entropy.
    """

    records: list[dict[str, Any]]
    means: dict[str, tuple[float, float | None]]
    images: int
    one_class: int
    pruning_blocks: tuple[int, ...]
    verdict: str
    trusted: bool


def check_foreground(
    model: nn.Module,
    images_and_masks: Iterable[tuple[Image.Image, np.ndarray]],
    orders: Sequence[float] = (1.0, 2.0, math.inf),
    *,
    blocks: Sequence[int] | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> ForegroundCheck:
    """How well the patches' scores tell foreground from background, in every block of the unpruned model.

    A patch is foreground if at least half of it is, by the mask resized and cropped as the image is; every other patch
    is background, none is left out. A score is as good as its AUROC, the probability that a foreground patch scores
    higher than a background one, ties counting half: 0.5 is chance, below 0.5 the sign is reversed. It is taken per
    image, then averaged over images. The scores:

    - low entropy of each order: minus the attention entropy, mean over heads, as `Renyi` ranks by it;
    - EViT: the class token's attention, mean over heads, where the model has a class token;
    - "pixels": the Euclidean distance in RGB from the patch's mean colour to the mean colour of the whole crop. It
      needs no model, so a score that is no better has learnt nothing that is of use here.

    The verdict is to trust low entropy if in each of the pruning blocks its mean AUROC lies more than two standard
    errors over images above 0.5.

    Args:
        model: a timm model that `entropatch.prune_` supports; left as it was found.
        images_and_masks: RGB images and masks (height, width), bool, True = foreground; read one at a time.
        orders: of the entropy, each in (0, ∞].
        blocks: 0-based blocks that pruning would use; None means ¼, ½ and ¾ of the depth.
        on_image: called after each image.

    Raises:
        ValueError: no order, or one out of range; no image with both foreground and background; a block out of range.
        MaskError: a mask of another size than its image.
        UnsupportedModelError: the model cannot be looked into.
        ImportError: SciPy is not installed.
    """
    if not orders:
        raise ValueError("orders must name at least one order of the entropy, such as 2.0, but got none.")
    scores = [renyi_method(order).criterion for order in orders]
    per_image: list[tuple[dict[str, np.ndarray], float]] = []
    one_class = 0
    for number, (image, mask) in enumerate(images_and_masks, 1):
        check_size(mask, image, f"image {number}")
        found = _image_aurocs(model, image, mask, scores)
        if found is None:
            one_class += 1
        else:
            per_image.append(found)
        on_image()
    if not per_image:
        raise ValueError(
            "at least one image must hold both foreground and background patches, but of "
            f"{one_class} image{'s' * (one_class != 1)} none does."
        )
    by_score = {name: np.stack([one[name] for one, _ in per_image]) for name in per_image[0][0]}  # (images, blocks)
    return _summary(by_score, np.array([pixels for _, pixels in per_image]), one_class, blocks)


def auroc(scores: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Probability that a foreground patch scores higher than a background one; ties count half.

    By the rank sum: (Σ ranks of the foreground - P(P + 1)/2) / (P·N), with average ranks for ties.

    Args:
        scores: (…, n).
        foreground: (n,), bool, with at least one of each.

    Returns:
        (…), in [0, 1].

    Raises:
        ValueError: only one class; scores that are not finite.
        ImportError: SciPy is not installed.
    """
    stats: Any = require("scipy.stats", "figures")
    positive, negative = int(foreground.sum()), int((~foreground).sum())
    if not positive or not negative:
        raise ValueError(f"foreground must hold both classes, but got {positive} of one and {negative} of the other.")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite, but got NaN or infinity.")
    ranks = stats.rankdata(scores, axis=-1)[..., foreground]
    return (ranks.sum(-1) - positive * (positive + 1) / 2) / (positive * negative)


def pixel_deviation(crop: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Euclidean distance in RGB, 0 … 1 per channel, from each patch's mean colour to the mean colour of the crop.

    Args:
        crop: (height, width, 3), uint8.
        grid: (H, W), which divides it.

    Returns:
        (H, W), float64.
    """
    means = patch_means(crop / 255, grid)
    return np.linalg.norm(means - means.mean((0, 1)), axis=-1)


def _image_aurocs(
    model: nn.Module, image: Image.Image, mask: np.ndarray, criteria: Sequence[Any]
) -> tuple[dict[str, np.ndarray], float] | None:
    """AUROC of each score in every block (blocks,), and of the pixels; None if there is one class only."""

    def look(attention: BlockAttention, grid: tuple[int, int]) -> dict[str, np.ndarray]:
        del grid
        wanted = {_name(criterion): criterion for criterion in criteria}
        if attention.has_class_token:
            wanted[EVIT] = ClassAttention()
        return {name: one.importance(attention)[0].double().cpu().numpy() for name, one in wanted.items()}

    seen = observe(model, to_tensor(image, model)[None], look)
    foreground = (foreground_share(mask, model, seen.grid) >= SHARE).ravel()
    if foreground.all() or not foreground.any():
        return None
    blocks = list(seen.blocks.values())
    pixels = pixel_deviation(np.asarray(cropped(image, model)), seen.grid).ravel()
    found = {name: auroc(np.stack([block[name] for block in blocks]), foreground) for name in blocks[0]}
    return found, float(auroc(pixels, foreground))


def _name(criterion: Renyi) -> str:
    return "shannon" if criterion.order == 1 else renyi_method(criterion.order).name


def _label(name: str) -> str:
    return {PIXELS: "pixel deviation", EVIT: "EViT"}.get(name) or find_method(name).label


def _summary(
    by_score: dict[str, np.ndarray], pixels: np.ndarray, one_class: int, blocks: Sequence[int] | None
) -> ForegroundCheck:
    depth = next(iter(by_score.values())).shape[1]
    pruning = default_blocks(depth) if blocks is None else tuple(blocks)
    if any(not 0 <= block < depth for block in pruning):
        raise ValueError(f"blocks must lie in 0 … {depth - 1} for a model of depth {depth}, but got {pruning}.")
    columns = [(name, block, values[:, block]) for name, values in by_score.items() for block in range(depth)]
    records = []
    for name, block, values in [*columns, (PIXELS, None, pixels)]:
        mean, error = _mean(values)
        record = {"score": name, "label": _label(name), "block": block, "auroc": mean, "standard_error": error}
        records.append(record | {"images": len(values)})
    means = {name: _mean(values.mean(1)) for name, values in by_score.items()} | {PIXELS: _mean(pixels)}
    entropies = [name for name in by_score if name != EVIT]
    best = max(entropies, key=lambda name: means[name][0])
    trusted, advice = _advice({block: _mean(by_score[best][:, block]) for block in pruning})
    others = [f"{_label(name)} {_text(means[name])}" for name in means if name not in entropies]
    marked = {
        name: sum(_above(*_mean(values[:, block])) for block in range(depth)) for name, values in by_score.items()
    }
    if EVIT in by_score:
        others[0] = f"EViT in {marked[EVIT]} ({_text(means[EVIT])})"
    verdict = (
        f"{_label(best)}: low entropy marks the foreground in {marked[best]} of {depth} blocks (mean AUROC "
        f"{_text(means[best])} over {len(pixels)} image{'s' * (len(pixels) != 1)}), {', '.join(others)}: {advice}"
    )
    return ForegroundCheck(records, means, len(pixels), one_class, pruning, verdict, trusted)


def _advice(at: dict[int, tuple[float, float | None]]) -> tuple[bool, str]:
    """Whether to trust low entropy, and in words why."""

    def named(blocks: list[int]) -> str:
        return f"block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))}"

    if all(error is None for _, error in at.values()):
        return False, "one image alone says nothing about others; check several."
    reversed_in = [block for block, (mean, error) in at.items() if error is not None and mean + ERRORS * error < 0.5]
    unsure = [block for block, (mean, error) in at.items() if block not in reversed_in and not _above(mean, error)]
    if reversed_in:
        return False, f"do not trust low entropy here; it marks the background in {named(reversed_in)}."
    if unsure:
        where = named(unsure)
        return False, f"do not trust low entropy here; not shown to beat chance in {where}; more images may settle it."
    return True, f"trust low entropy for pruning at {named(list(at))}."


def _above(mean: float, error: float | None) -> bool:
    """Whether a mean lies above chance by more than its error allows."""
    return error is not None and mean - ERRORS * error > 0.5


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    """Mean over images and its standard error."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return float(values.mean()), error


def _text(mean: tuple[float, float | None]) -> str:
    return f"{mean[0]:.2f}" + ("" if mean[1] is None else f" ± {mean[1]:.2f}")
