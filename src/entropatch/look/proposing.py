"""Blocks to prune at, and by which score, from how well the scores mark the foreground: what a check proposes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from entropatch.config import KEEP_RATE, PruneConfig
from entropatch.look.verdict import above, mean_of, named, text_of


@dataclass(frozen=True)
class Proposal:
    """The blocks at which one score marks the foreground best, as far as it does so by more than chance.

    Attributes:
        score, label: of the method, such as "renyi-2".
        blocks: 0-based, ascending; none where the mean AUROC is above 0.5 by more than two standard errors nowhere.
        auroc: mean over these blocks and the images; NaN without blocks.
        text: all of it in a line.
    """

    score: str
    label: str
    blocks: tuple[int, ...]
    auroc: float
    text: str

    def config(self, keep_rate: float = KEEP_RATE) -> PruneConfig:
        """The setting that prunes there by that score, at one keep rate ρ in (0, 1].

        Raises:
            ValueError: no block is proposed, or the rate is out of range.
        """
        if not self.blocks:
            raise ValueError(self.text)
        return PruneConfig(keep_rate, method=self.score, blocks=self.blocks)


def propose(score: str, label: str, aurocs: np.ndarray, most: int) -> Proposal:
    """The at most `most` blocks of the highest mean AUROC among those above chance by more than the error allows.

    Args:
        score, label: its name, and how tables call it.
        aurocs: (images, blocks of the model).
        most: blocks; of equal ones the earlier, which saves more.
    """
    at = [mean_of(aurocs[:, block]) for block in range(aurocs.shape[1])]
    marking = [block for block, mean in enumerate(at) if above(*mean)]
    best = tuple(sorted(sorted(marking, key=lambda block: (-at[block][0], block))[:most]))
    if not best:
        text = f"{label}: no block is proposed, since in none its AUROC is above chance by more than the error"
        return Proposal(score, label, (), float("nan"), f"{text}{_alone(aurocs)}.")
    auroc = float(aurocs[:, best].mean())
    numbers = ", ".join(text_of(at[block]) for block in best)
    fewer = f"; only {len(best)} of {most}, since no other is above chance" if len(best) < most else ""
    return Proposal(score, label, best, auroc, f"{label}: {named(best)} proposed, AUROC {numbers}{fewer}.")


def best_of(proposals: Sequence[Proposal]) -> Proposal | None:
    """The one of the highest mean AUROC at its blocks, the first of equals; None where none proposes a block.

    One that proposes more blocks comes before one that proposes fewer, whose mean would be that of its best alone.
    """
    found = [one for one in proposals if one.blocks]
    return max(found, key=lambda one: (len(one.blocks), one.auroc), default=None)


def _alone(aurocs: np.ndarray) -> str:
    return "; one image alone has no error, so check several" if len(aurocs) < 2 else ""
