"""Packaging: the other patches become one token that is always kept. SPViT's reduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.reductions.base import Reduction
from entropatch.tokens import Plan, Tokens, select


@dataclass(frozen=True)
class Package(Reduction):
    """The patches of the highest importance stay; the others become one token, Σ_j s_j x_j / Σ_j s_j (SPViT).

    s_j are the shares that the criterion decides by (`Decision.shares`), or the importances as shares
    (`Criterion.mass`). The token is appended last, takes part from this very block on (Kong et al. 2022), and stands at
    no place of the grid. For criteria that decide before a block; `HeadSelector` keeps it in every later stage.
    """

    kind: ClassVar[str] = "package"
    outcome: ClassVar[str] = "packaged"
    appends: ClassVar[bool] = True
    before: ClassVar[bool] = True

    def plan(self, attention: BlockAttention, tokens: Tokens, scores: Tensor | None, k: int) -> Plan:
        assert scores is not None
        return self.planned(scores, scores.softmax(1), k)

    def planned(self, priorities: Tensor, shares: Tensor, k: int) -> Plan:
        kept = select(priorities, k)
        others = shares.scatter(1, kept, 0.0)
        return Plan(kept, appended=(others / others.sum(1, keepdim=True))[:, None])
