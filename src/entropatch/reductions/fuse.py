"""Fusing: the other patches become one token. EViT's reduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.reductions.base import Reduction
from entropatch.tokens import Plan, Tokens, select


@dataclass(frozen=True)
class Fuse(Reduction):
    """`Drop`, with EViT's fused token appended last (Liang et al. 2022).

    With a_j the class token's attention on patch j, mean over heads, not renormalised, and K the patches that stay:

        x_new = Σ_{j ∉ K} a_j x_j

    A later stage scores, counts and keeps or removes it like any patch. Where all patches stay none is made.

    What differs from the released code: that scores, counts and may drop a distillation token as a patch; here every
    prefix token stays. k = ceil(ρ·n) is exact, there of a product in double precision (56 of 100 at ρ = 0.55). The
    patches that stay keep their own order, there that of their scores, which no output depends on. Dropout of the
    attention, if the model has any, touches neither scores nor weights.
    """

    kind: ClassVar[str] = "fuse"
    outcome: ClassVar[str] = "fused"
    needs_class_token: ClassVar[bool] = True
    appends: ClassVar[bool] = True

    def plan(self, attention: BlockAttention, tokens: Tokens, scores: Tensor | None, k: int) -> Plan:
        assert scores is not None
        kept = select(scores, k)
        weights = attention.class_attention().mean(1).scatter(1, kept, 0.0)
        return Plan(kept=kept, appended=weights[:, None])
