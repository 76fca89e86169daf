"""Parking: the other patches wait as they are, and are joined again before the last block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.reductions.base import Reduction
from entropatch.tokens import Plan, Tokens, select


@dataclass(frozen=True)
class Park(Reduction):
    """The k patches of the highest importance stay; the others are joined again before the last block.

    Token Cropr's last layer fusion (Bergner et al. 2025). A patch waits with the value it had when it left; the last
    block sees all patches, in the order of the grid, so that what leaves it is a full map. For criteria that decide
    before a block, such as `QueryScore`.
    """

    kind: ClassVar[str] = "park"
    outcome: ClassVar[str] = "joined again before the last block"
    before: ClassVar[bool] = True
    parks: ClassVar[bool] = True

    def plan(self, attention: BlockAttention, tokens: Tokens, scores: Tensor | None, k: int) -> Plan:
        assert scores is not None
        return self.planned(scores, scores, k)

    def planned(self, priorities: Tensor, shares: Tensor, k: int) -> Plan:
        return Plan(kept=select(priorities, k))
