"""Whether an exported file computes what the model does: kept sets first, then outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from entropatch.export.subject import KEPT, PLACES, SCORES, Subject, inspected_outputs

# How strongly images are shaken, in units of their deviation, to find choices that rounding decides: about what the
# float32 rounding of a network does to its values.
SHAKING, SHAKES = 3e-6, 8

Named = Mapping[str, np.ndarray]
Place = tuple[int, int, int]  # batch size, image, block


class ParityError(ValueError):
    """An exported file that does not compute what the model does. It is not put in place."""


@dataclass
class Gap:
    """The largest difference from PyTorch's values, and the largest of those."""

    difference: float = 0.0
    largest: float = 0.0

    def add(self, mine: np.ndarray, other: np.ndarray) -> None:
        """Take in PyTorch's values and others of the same shape."""
        if mine.size == 0:
            return
        with np.errstate(invalid="ignore"):
            apart = np.abs(mine.astype(np.float64) - other)
        same = (mine == other) | (np.isnan(mine) & np.isnan(other))
        self.difference = float(np.maximum(self.difference, np.where(same, 0.0, apart).max()))  # NaN stays NaN
        self.largest = max(self.largest, float(np.abs(mine, where=np.isfinite(mine), out=np.zeros_like(mine)).max()))

    def allowed(self, tolerance: float) -> float:
        """The largest difference that the tolerance allows."""
        return tolerance * max(1.0, self.largest)

    def exceeds(self, tolerance: float) -> bool:
        """Whether values differ by more, or are not numbers."""
        return not self.difference <= self.allowed(tolerance)


@dataclass
class Parity:
    """How far a file's results are from PyTorch's.

    Attributes:
        batch_sizes: the batches that were run.
        staged: whether blocks keep sets at all.
        images: how many images were run, over all batches.
        counted: how many of them have PyTorch's kept sets in every block, and no near tie; all of them if `lossy`.
        near_ties: choices between scores that differ by less than the score error; what follows is not counted.
        differing: choices that differ without that excuse.
        scores: of each block that scored, of the images counted until then.
        outputs: of the images counted.
        kept_share: mean share of the patches kept that PyTorch keeps too.
        agreeing: share of the images whose highest output is PyTorch's.
        lossy: whether the file is to differ, as a quantised one does.
    """

    batch_sizes: tuple[int, ...]
    staged: bool = False
    lossy: bool = False
    images: int = 0
    counted: int = 0
    near_ties: list[Place] = field(default_factory=list)
    differing: list[Place] = field(default_factory=list)
    scores: dict[int, Gap] = field(default_factory=dict)
    outputs: Gap = field(default_factory=Gap)
    kept_share: float = 1.0
    agreeing: float = 1.0

    def wrong(self, tolerance: float) -> str | None:
        """What is wrong with the file, if anything; of a lossy one only values that are not numbers."""
        if self.lossy:
            return None if np.isfinite(self.outputs.difference) else "its outputs are no numbers where PyTorch's are"
        scores = ((f"scores in block {block}", gap) for block, gap in self.scores.items())
        for what, gap in (*scores, ("outputs", self.outputs)):
            if gap.exceeds(tolerance):
                return f"its {what} differ by up to {gap.difference:.2g}, allowed {gap.allowed(tolerance):.2g}"
        if self.differing:
            return "it keeps other patches: " + "; ".join(_where(self.differing))
        if not self.counted:
            return "no image could be compared, since each has near ties; give photographs as images"
        return None

    def lines(self) -> list[str]:
        """The comparison in words, kept sets first."""
        sizes, lines = " and ".join(map(str, self.batch_sizes)), []
        if self.staged and self.lossy:
            lines.append(f"kept sets: {self.kept_share:.1%} of the patches kept are PyTorch's, batch sizes {sizes}")
        elif self.staged:
            lines.append(
                f"kept sets: equal for {self.counted} of {self.images} images, batch sizes {sizes}; score error "
                + (", ".join(f"{gap.difference:.1e} in block {block}" for block, gap in self.scores.items()) or "none")
            )
            lines += [f"near tie, not counted: {place}" for place in _where(self.near_ties)]
            lines += [f"other patches kept: {place}" for place in _where(self.differing)]
        lines.append(
            f"outputs: largest difference {self.outputs.difference:.1e}, batch sizes {sizes}; "
            f"largest output {self.outputs.largest:.1f}"
            + ("" if self.outputs.largest else "; all are 0, as of an untrained head, so the outputs say nothing")
            + (f"; {self.agreeing:.1%} of the images with the same highest one" if self.lossy else "")
        )
        return lines


def _where(places: Sequence[Place]) -> list[str]:
    """The places in words, those of one block and batch together."""
    together: dict[tuple[int, int], list[int]] = {}
    for size, image, block in places:
        together.setdefault((size, block), []).append(image)
    return [f"block {block}, image {', '.join(map(str, found))} of {size}" for (size, block), found in together.items()]


def batches_of(images: Tensor) -> dict[str, Tensor]:
    """The images in two batch sizes, one of them 1; one image alone is joined by its mirror image."""
    if images.shape[0] == 1:
        images = torch.cat((images, images.flip(-1)))
    return {str(images.shape[0]): images, "1": images[:1]}


def compare(
    subject: Subject, batches: Mapping[str, Tensor], found: Mapping[str, Named], *, lossy: bool = False
) -> Parity:
    """Set what a file computed, by batch and name, beside what PyTorch does."""
    parity = Parity(tuple(map(int, batches)), bool(subject.decisions), lossy)
    agreeing, shares = [], []
    for size, images in batches.items():
        mine, other = in_pytorch(subject.model, images), found[size]
        counted = (
            np.ones(len(images), dtype=bool) if lossy else _compare_kept(parity, subject.model, images, mine, other)
        )
        parity.images += len(images)
        parity.counted += int(counted.sum())
        shares += _kept_shares(mine, other)
        for name in subject.outputs:
            by_image = mine[name].shape[:1] == other[name].shape[:1] == (len(images),)
            if by_image:
                parity.outputs.add(mine[name][counted], other[name][counted])
            else:  # one for all images, such as a temperature of 100, which must not set the scale of the others
                scale = max(1.0, float(np.abs(mine[name]).max(initial=0)))
                parity.outputs.add(mine[name] / scale, other[name] / scale)
            if mine[name].ndim == 2 and by_image:
                agreeing += list(mine[name].argmax(1) == other[name].argmax(1))
    parity.agreeing = float(np.mean(agreeing or [1.0]))
    parity.kept_share = float(np.mean(shares or [1.0]))
    return parity


def in_pytorch(model: nn.Module, images: Tensor) -> Named:
    """Outputs and decisions of the model, by name."""
    with torch.no_grad():
        return {name: value.numpy() for name, value in inspected_outputs(model, images).items()}


def _compare_kept(parity: Parity, model: nn.Module, images: Tensor, mine: Named, other: Named) -> np.ndarray:
    """Which images keep PyTorch's sets in all blocks without a near tie, (batch,)."""
    counted = np.ones(len(images), dtype=bool)
    for block in _stages(mine):
        same = _same(mine, other, block)
        close = np.zeros_like(counted)
        if f"{SCORES}_{block}" in mine:
            ours, theirs = (scores[f"{SCORES}_{block}"] for scores in (mine, other))
            parity.scores.setdefault(block, Gap()).add(ours[counted], theirs[counted])
            with np.errstate(invalid="ignore"):
                error = np.where(ours == theirs, 0.0, np.abs(ours.astype(np.float64) - theirs)).max(1)
            # Each of the two scores may be off by the error.
            close = _margin(ours, mine[f"{KEPT}_{block}"].shape[1]) < 2 * error
        if (counted & ~same & ~close).any():
            close |= _shaken(model, images, mine, block)  # which pairs are merged depends on more than scores
        rows = [np.flatnonzero(counted & close), np.flatnonzero(counted & ~close & ~same)]
        for places, found in zip((parity.near_ties, parity.differing), rows, strict=True):
            places += [(len(images), int(image), block) for image in found]
        counted &= same & ~close
    return counted


def _stages(named: Named) -> list[int]:
    return sorted(int(name.rpartition("_")[2]) for name in named if name.rpartition("_")[0] == KEPT)


def _same(mine: Named, other: Named, block: int) -> np.ndarray:
    """Of which images the block keeps the same patches, and every other one goes to the same place, (batch,)."""
    names: Sequence[str] = (f"{KEPT}_{block}", f"{PLACES}_{block}")
    return np.logical_and.reduce([(mine[name] == other[name]).all(1) for name in names])


def _margin(scores: np.ndarray, k: int) -> np.ndarray:
    """How far the k-th highest score is above the next, (batch,)."""
    ordered = -np.sort(-scores.astype(np.float64), axis=1)
    return np.full(len(scores), np.inf) if k >= scores.shape[1] else ordered[:, k - 1] - ordered[:, k]


def _shaken(model: nn.Module, images: Tensor, mine: Named, block: int) -> np.ndarray:
    """Of which images PyTorch itself decides otherwise in this block once they are shaken by rounding, (batch,)."""
    moved = np.zeros(len(images), dtype=bool)
    generator = torch.Generator().manual_seed(0)
    for _ in range(SHAKES):
        noise = torch.randn(images.shape, generator=generator)
        moved |= ~_same(mine, in_pytorch(model, images + SHAKING * images.std() * noise), block)
    return moved


def _kept_shares(mine: Named, other: Named) -> list[float]:
    """Of each image and stage, the share of the patches kept that PyTorch keeps too."""
    return [
        float(np.isin(theirs, ours).mean())
        for block in _stages(mine)
        for ours, theirs in zip(mine[f"{KEPT}_{block}"], other[f"{KEPT}_{block}"], strict=True)
    ]
