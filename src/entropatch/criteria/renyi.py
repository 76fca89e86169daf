"""Low attention entropy = keep: the paper's criterion."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.criteria.base import Criterion
from entropatch.entropy import check_order


@dataclass(frozen=True)
class Renyi(Criterion):
    """Low attention entropy = keep: -mean over heads of H_α (arXiv 2604.03803). Order 1 is Shannon, inf min-entropy.

    Each head's entropy is taken first and the plain mean over heads after, in nats.
    """

    order: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", check_order(self.order))

    @property
    def label(self) -> str:
        if self.order == 1:
            return "Shannon"
        return "Rényi, order " + ("∞" if math.isinf(self.order) else f"{self.order:.6g}")

    def importance(self, attention: BlockAttention) -> Tensor:
        return -attention.entropy(self.order).mean(1)
