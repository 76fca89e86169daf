"""Evo-ViT's slow and fast path: the chosen patches run the blocks, the others wait beside and are joined again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.reductions.base import Reduction
from entropatch.tokens import Plan, Tokens, select


@dataclass(frozen=True)
class SlowFast(Reduction):
    """The k patches of the highest importance so far run the blocks; the others wait as they were (Evo-ViT).

    Of the n patches that enter a reducing block (Xu et al. 2022), the k with the highest global class attention g take
    the slow path: with the prefix tokens they are all that its attention and MLP see, and those of the blocks behind
    it. The others, the placeholders, stand beside, and before the next reducing block, or behind the last block, all n
    are there again, in their order; so no token is ever lost, and each reducing block chooses anew. g is that of the
    blocks before, and of placeholders stays as it is: a criterion that remembers it scores them,
    `RunningClassAttention`. Evo-ViT's k is int(n/2), chosen in blocks 4 and 8 of 12 (the stages that its training
    ends with): `FloorRate` at a keep rate of 0.5. With blocks=(4, 5, …, 11) each chooses anew, as where it begins.

    With `representative` the placeholders take the paper's fast path: one token more runs the blocks, x_r = Σ_i w_i x_i
    over the placeholders, w_i = g_i / Σ g, and what the blocks add to it is added to each of them. Without, they wait
    unchanged, as in the released code of its DeiT; that of its LeViT has a representative, which takes the place of one
    of the k patches while a stage chooses once, and of none while each block chooses anew. The release reads its
    classes from the mean of the patches, then normed, which its training taught it (timm: global_pool="avg"), and
    trains with a second head on the class token; stock models keep their own heads.
    """

    kind: ClassVar[str] = "slow-fast"
    outcome: ClassVar[str] = "waiting beside"
    detours: ClassVar[bool] = True

    representative: bool = False

    @property
    def appends(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Only the representative, which stands at no place of the grid."""
        return self.representative

    def plan(self, attention: BlockAttention, tokens: Tokens, scores: Tensor | None, k: int) -> Plan:
        assert scores is not None
        return self.planned(scores, scores.softmax(1), k)

    def planned(self, priorities: Tensor, shares: Tensor, k: int) -> Plan:
        """What runs the block: the k best by priority, and for the others, if so set, their representative.

        Both (batch, n); `shares` weigh the tokens that wait.
        """
        kept = select(priorities, k)
        if not self.representative:
            return Plan(kept)
        waiting = shares.scatter(1, kept, 0.0)
        even = torch.ones_like(shares).scatter(1, kept, 0.0)
        total = waiting.sum(1, keepdim=True)
        weights = torch.where(total > 0, waiting / total, even / even.sum(1, keepdim=True))
        return Plan(kept, appended=weights[:, None])
