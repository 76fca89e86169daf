"""How differently the heads attend: variance, or median absolute deviation, of class attention over the heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.criteria.base import Criterion

MEASURES = ("variance", "mad")


@dataclass(frozen=True)
class HeadDiversity(Criterion):
    """Diversity of the class token's attention over the heads; large = keep (Igaue & Aizawa 2025).

    With a_j^h the attention of the class token on patch j in head h, softmaxed over all tokens, and H heads:

        variance   s_j = (1/H) Σ_h (a_j^h - mean_h a_j^h)²
        mad        s_j = median_h |a_j^h - median_h a_j^h|

    A median of an even number of heads is the mean of the two in the middle (quantile 0.5). The variance is that of a
    whole; over H - 1 it would rank alike. Written from the paper's abstract: its overlapping patch embedding is a
    property of the model, and not part of this.

    Args:
        measure: "variance" or "mad", the median absolute deviation.

    Raises:
        ValueError: another measure; or, when asked, a block of one head, in which nothing differs.
    """

    needs_class_token: ClassVar[bool] = True

    measure: str = "variance"

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"measure must be one of {', '.join(MEASURES)}, but got {self.measure!r}.")

    @property
    def label(self) -> str:
        return "head variance" if self.measure == "variance" else "head MAD"

    def importance(self, attention: BlockAttention) -> Tensor:
        rows = attention.class_attention()
        if rows.shape[1] == 1:
            raise ValueError(
                f"HeadDiversity needs at least two heads, but the attention of block {attention.block} has one, so no "
                "two can differ; use ClassAttention()."
            )
        if self.measure == "variance":
            return (rows - rows.mean(1, keepdim=True)).square().mean(1)
        return median((rows - median(rows)[:, None]).abs())

    def mass(self, scores: Tensor) -> Tensor:
        """Each patch's diversity, divided by the sum over the patches."""
        return scores.float() / scores.float().sum(1, keepdim=True)


def median(values: Tensor) -> Tensor:
    """Over the heads: (batch, heads, n) -> (batch, n); the mean of the two in the middle where heads are even."""
    ranked, heads = values.sort(dim=1).values, values.shape[1]
    return (ranked[:, (heads - 1) // 2] + ranked[:, heads // 2]) / 2
