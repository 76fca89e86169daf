"""Dropping: the other patches leave the sequence. The paper's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.reductions.base import Reduction
from entropatch.tokens import Plan, Tokens, select


@dataclass(frozen=True)
class Drop(Reduction):
    """The k patches of the highest importance stay, in raster order; the others are gone (arXiv 2604.03803)."""

    kind: ClassVar[str] = "drop"
    before: ClassVar[bool] = True

    def plan(self, attention: BlockAttention, tokens: Tokens, scores: Tensor | None, k: int) -> Plan:
        assert scores is not None
        return self.planned(scores, scores, k)

    def planned(self, priorities: Tensor, shares: Tensor, k: int) -> Plan:
        return Plan(kept=select(priorities, k))
