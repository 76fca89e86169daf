"""Evo-ViT's global class attention: the class token's attention, averaged over the blocks so far."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.criteria.att_entropy import state_after, state_before
from entropatch.criteria.base import Criterion


@dataclass(frozen=True)
class RunningClassAttention(Criterion):
    """Evo-ViT's global class attention (Xu et al. 2022); large = keep.

    With a^l_j = Σ_h A^h[0, j] of block l, softmaxed over all tokens there:

        g^l = (1 - τ) g^{l-1} + τ a^l        τ = 1 in blocks before `begin`, then `share`

    In block l the patches are scored by g^l, and a reduction that chooses before a block's attention (`SlowFast`)
    scores them by g^{l-1}. Patches that did not take part in a block keep their g. A token that is appended begins with
    the mean of its tokens.

    Args:
        share: τ in (0, 1], the share of the newest block.
        begin: the first block in which the blocks before count.
    """

    needs_class_token: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    share: float = 0.5
    begin: int = 4

    def __post_init__(self) -> None:
        share: Any = self.share
        if isinstance(share, bool) or not isinstance(share, Real):
            raise TypeError(f"share must be a number in (0, 1], but got {share!r}.")
        if not 0 < float(share) <= 1:
            raise ValueError(f"share must lie in (0, 1], but got {share!r}.")
        begin: Any = self.begin
        if isinstance(begin, bool) or not isinstance(begin, Integral):
            raise TypeError(f"begin must be the 0-based index of a block, but got {begin!r}.")
        if begin < 0:
            raise ValueError(f"begin must be the 0-based index of a block, but got {begin!r}.")
        object.__setattr__(self, "share", float(share))
        object.__setattr__(self, "begin", int(begin))
        object.__setattr__(self, "_key", f"{self.kind}({self.share!r}, {self.begin})")

    @property
    def label(self) -> str:
        return "running class attention"

    @property
    def followed(self) -> tuple[Criterion, ...]:
        return (self,)

    @property
    def state_key(self) -> str:
        return vars(self)["_key"]

    def follow(self, attention: BlockAttention) -> Tensor:
        """g after this block, (batch, patches)."""
        row = attention.class_attention().sum(1)
        if attention.block == 0 or attention.block < self.begin or self.share == 1:
            return row
        return (1 - self.share) * state_before(self, attention) + self.share * row

    def remembered(self, state: Tensor) -> Tensor:
        return state

    def importance(self, attention: BlockAttention) -> Tensor:
        return state_after(self, attention)

    def mass(self, scores: Tensor) -> Tensor:
        """Each patch's g, divided by the sum over the patches."""
        return scores.float() / scores.float().sum(1, keepdim=True)
