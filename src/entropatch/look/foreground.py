"""Does low attention entropy mark the foreground, in this model and on these images? Measured before it is trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from entropatch.attention import BlockAttention
from entropatch.criteria.base import show
from entropatch.data.images import cropped, to_tensor
from entropatch.data.masks import check_size, foreground_share, patch_means
from entropatch.extras import require
from entropatch.look.observation import observe
from entropatch.look.proposing import Proposal, best_of, propose
from entropatch.look.verdict import Verdict, above, judge, mean_of, text_of
from entropatch.methods import Method, compared_methods, find_method, method_label, renyi_method
from entropatch.schedule import default_blocks
from entropatch.surgery import block_count

# A patch is foreground if at least this share of it is.
SHARE = 0.5
PIXELS = "pixels"
PAPER_BLOCKS, PAPER_DEPTH = (3, 6, 9), 12


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
        pruning_blocks: the blocks the verdicts look at.
        verdicts: one per order, then one per method that was named, in the order asked for.
        comparison: a line on the scores beside them.
        proposals: one for each verdict: the blocks where that score marks the foreground best.
    """

    records: list[dict[str, Any]]
    means: dict[str, tuple[float, float | None]]
    images: int
    one_class: int
    pruning_blocks: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    comparison: str
    proposals: tuple[Proposal, ...] = ()

    @property
    def proposal(self) -> Proposal | None:
        """The best of them, whose `config` is a setting for `entropatch.prune_`; None where no block is proposed."""
        return best_of(self.proposals)


def check_foreground(
    model: nn.Module,
    images_and_masks: Iterable[tuple[Image.Image, np.ndarray]],
    orders: Sequence[float] = (1.0, 2.0, math.inf),
    *,
    methods: Sequence[str] | None = None,
    blocks: Sequence[int] | None = None,
    most_blocks: int | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> ForegroundCheck:
    """How well the patches' scores tell foreground from background, in every block of the unpruned model.

    A patch is foreground if at least half of it is, by the mask resized and cropped as the image is; every other patch
    is background, none is left out. A score is as good as its AUROC, the probability that a foreground patch scores
    higher than a background one, ties counting half: 0.5 is chance, below 0.5 the sign is reversed. It is taken per
    image, then averaged over images. The scores:

    - low entropy of each order: minus the attention entropy, mean over heads, as `Renyi` ranks by it;
    - those of the methods: the importances of their criteria, such as EViT's, the class token's attention;
    - "pixels": the Euclidean distance in RGB from the patch's mean colour to the mean colour of the whole crop. It
      needs no model, so a score that is no better has learnt nothing that is of use here.

    The verdict on an order is to trust low entropy if in each of the pruning blocks its mean AUROC lies more than two
    standard errors over images above 0.5; it also names the blocks where the AUROC is highest, and by how much. So has
    a method that was named, on its scores.

    Args:
        model: a timm model that `entropatch.prune_` supports; left as it was found.
        images_and_masks: RGB images and masks (height, width), bool, True = foreground; read one at a time.
        orders: of the entropy, each in (0, ∞].
        methods: whose scores stand beside, by their names in `entropatch.methods`; None means every compared one that
            scores patches, by neither chance nor an entropy alone, and can on this model.
        blocks: 0-based blocks that pruning would use; None means ¼, ½ and ¾ of the depth.
        most_blocks: proposed for each score; None means as many as `blocks`.
        on_image: called after each image.

    Raises:
        ValueError: no order, or one out of range; an unknown method, or one without scores; no image with both
            foreground and background; a block out of range; fewer than one block to
            propose.
        MaskError: a mask of another size than its image.
        UnsupportedModelError: the model cannot be looked into.
        ImportError: SciPy is not installed.
    """
    if not orders:
        raise ValueError("orders must name at least one order of the entropy, such as 2.0, but got none.")
    scored = _scored(orders, methods)
    pruning = _pruning_blocks(block_count(model), blocks)
    most = len(pruning) if most_blocks is None else most_blocks
    if most < 1:
        raise ValueError(f"most_blocks must be at least 1, but got {most}.")
    per_image: list[tuple[dict[str, np.ndarray], float]] = []
    one_class = 0
    for number, (image, mask) in enumerate(images_and_masks, 1):
        check_size(mask, image, f"image {number}")
        found = image_aurocs(model, image, mask, scored, methods is not None)
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
    judged = (*(renyi_method(order).name for order in orders), *(find_method(name).name for name in methods or ()))
    return _summary(by_score, np.array([pixels for _, pixels in per_image]), one_class, pruning, judged, most)


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


def image_aurocs(
    model: nn.Module, image: Image.Image, mask: np.ndarray, scored: Sequence[Method], named: bool = True
) -> tuple[dict[str, np.ndarray], float] | None:
    """AUROC of each method's scores in every block (blocks,), and of the pixels; None if there is one class only.

    Args:
        model, image, mask: as of `check_foreground`.
        scored: methods that score patches.
        named: whether all must be possible on this model; else those that need a class token are left out without one.
    """

    carried: dict[str, Tensor] = {}

    def look(attention: BlockAttention, grid: tuple[int, int]) -> dict[str, np.ndarray]:
        del grid
        nonlocal carried
        criteria = {one.name: one.parts[0][0] for one in scored}
        wanted = [
            name for name, one in criteria.items() if named or attention.has_class_token or not one.needs_class_token
        ]
        carried = show([criteria[name] for name in wanted], attention, carried)
        return {name: criteria[name].importance(attention)[0].double().cpu().numpy() for name in wanted}

    seen = observe(model, to_tensor(image, model)[None], look)
    foreground = (foreground_share(mask, model, seen.grid) >= SHARE).ravel()
    if foreground.all() or not foreground.any():
        return None
    blocks = list(seen.blocks.values())
    pixels = pixel_deviation(np.asarray(cropped(image, model)), seen.grid).ravel()
    found = {name: auroc(np.stack([block[name] for block in blocks]), foreground) for name in blocks[0]}
    return found, float(auroc(pixels, foreground))


def _scored(orders: Sequence[float], names: Sequence[str] | None) -> list[Method]:
    """The methods whose scores are looked at: the entropies, then those named, or the default ones."""
    found = [renyi_method(order) for order in orders]
    for name in compared_methods() if names is None else names:
        method = find_method(name)
        if names is not None and not method.scores_attention:
            how = "decides before the attention" if method.needs_scores else "asks for no scores"
            raise ValueError(f"methods must name some that score patches by attention, but {name} {how}.")
        if len(method.parts) > 1:
            raise ValueError(
                f"methods must name one criterion each, since every block is scored by it, but got {name}."
            )
        if names is not None or not (method.drops_by_entropy or method.is_random or not method.scores_attention):
            found.append(method)
    return list({method.name: method for method in found}.values())


def _label(name: str) -> str:
    return "pixel deviation" if name == PIXELS else method_label(name)


def _pruning_blocks(depth: int, blocks: Sequence[int] | None) -> tuple[int, ...]:
    pruning = default_blocks(depth) if blocks is None else tuple(blocks)
    if not pruning or any(not 0 <= block < depth for block in pruning):
        raise ValueError(f"blocks must lie in 0 … {depth - 1} for a model of depth {depth}, but got {pruning}.")
    return pruning


def _summary(
    by_score: dict[str, np.ndarray],
    pixels: np.ndarray,
    one_class: int,
    pruning: tuple[int, ...],
    judged: Sequence[str],
    most: int,
) -> ForegroundCheck:
    depth = next(iter(by_score.values())).shape[1]
    columns = [(name, block, values[:, block]) for name, values in by_score.items() for block in range(depth)]
    records = []
    for name, block, values in [*columns, (PIXELS, None, pixels)]:
        mean, error = mean_of(values)
        record = {"score": name, "label": _label(name), "block": block, "auroc": mean, "standard_error": error}
        records.append(record | {"images": len(values)})
    means = {name: mean_of(values.mean(1)) for name, values in by_score.items()} | {PIXELS: mean_of(pixels)}
    of_paper = pruning == PAPER_BLOCKS and depth == PAPER_DEPTH
    verdicts = tuple(
        judge(name, _label(name), by_score[name], pruning, of_paper, _what(find_method(name)))
        for name in dict.fromkeys(judged)
    )
    proposals = tuple(propose(name, _label(name), by_score[name], most) for name in dict.fromkeys(judged))
    said = _comparison(by_score, means, len(pixels))
    return ForegroundCheck(records, means, len(pixels), one_class, pruning, verdicts, said, proposals)


def _what(method: Method) -> str:
    """What is trusted, or not, to mark the foreground."""
    return "low entropy" if method.order is not None else "a high score"


def _comparison(by_score: dict[str, np.ndarray], means: dict[str, tuple[float, float | None]], images: int) -> str:
    """The mean AUROC of each score in a line."""
    parts = []
    for name, mean in means.items():
        values = by_score.get(name)
        text = f"{_label(name)} {text_of(mean)}"
        if values is not None:
            marked = sum(above(*mean_of(values[:, block])) for block in range(values.shape[1]))
            text += f" (above chance in {marked} of {values.shape[1]} blocks)"
        parts.append(text)
    return f"Mean AUROC over {images} image{'s' * (images != 1)}, 0.5 being chance: {', '.join(parts)}."
