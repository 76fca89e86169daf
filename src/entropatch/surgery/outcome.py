"""`Outcome`: what became of some images' tokens in one block; and who is the best of them, by rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from entropatch.config import Stage
from entropatch.priorities import covering
from entropatch.schedule import Site
from entropatch.tokens import Plan, Tokens


@dataclass(frozen=True)
class Outcome:
    """What became of some images' tokens: all of them, or those of one size.

    Attributes:
        rows: numbers of these images in the batch that entered the block, (images,); None for all.
        plan: what was done; None if all their tokens stayed.
        n: patch tokens that left.
        valid: which of the tokens that entered stay, (images, n); None where all images keep as many as there are.
    """

    rows: Tensor | None
    plan: Plan | None
    n: int
    valid: Tensor | None = None

    def after(self, tokens: Tokens) -> Tokens:
        """What the tokens that left stand for; `tokens` is what those of these images that entered did."""
        if self.plan is None:
            return tokens
        return (tokens if self.valid is None else replace(tokens, valid=self.valid)).after(self.plan)


def ranked_within(priorities: Tensor | None, counts: Tensor | None) -> Tensor | None:
    """Which tokens are among the best of their image, as many as it keeps: (batch, n); None where all keep as many.

    Args:
        priorities: (batch, n), larger = better; equal ones rank by their index.
        counts: (batch,).
    """
    if priorities is None or counts is None:
        return None
    return priorities.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < counts[:, None]


def site_of(stage: Stage, tokens: Tokens) -> Site:
    """Where a stage's schedule is asked, of these tokens."""
    return Site(stage.block, stage.index, stage.count, stage.rate, tokens.n, tokens.total, stage.share)


def covered(stage: Stage, tokens: Tokens, scores: Tensor) -> Tensor:
    """The scores; with coverage their ranks, the cells' best first."""
    if stage.coverage is None:
        return scores
    if tokens.grid is not None and len(tokens.grid) != 2:
        raise ValueError(
            f"coverage={stage.coverage} cuts an image into cells, but the grid is {tokens.grid}: that of a video; "
            "leave coverage out."
        )
    if tokens.grid is None:
        raise ValueError(
            f"coverage={stage.coverage} needs to know where each patch stands, but patch dropout left some out before "
            "the first block; train without patch_drop_rate, or without coverage."
        )
    height, width = tokens.grid
    return covering(scores, tokens.original_positions(scores), (height, width), stage.coverage)
