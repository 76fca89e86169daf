"""Low attention entropy = keep: the paper's criterion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.criteria.base import Criterion
from entropatch.entropy import check_order


@dataclass(frozen=True)
class Renyi(Criterion):
    """Low attention entropy = keep: -mean over heads of H_α (arXiv 2604.03803). Order 1 is Shannon, inf min-entropy.

    With p_i^h the softmax of patch i's logits over the n patches alone, in head h of H (no class token, no registers):

        s_i = -(1/H) Σ_h H_α(p_i^h)        H_α(p) = log(Σ_j p_j^α) / (1 - α)
        H_1(p) = -Σ_j p_j log p_j          H_∞(p) = -log max_j p_j

    Each head's entropy is taken first and the plain mean over heads after, in nats.

    Fails where low entropy does not mark what the model reads: which block, order and data that is differs so much that
    it is to be measured (`entropatch.calibrate`), not assumed.
    """

    knows_padding: ClassVar[bool] = True

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

    def level(self, scores: Tensor) -> Tensor:
        """1 - H / log n: 0 where the patch attends evenly to all n patches, 1 where it attends to one."""
        return concentration(scores)


def concentration(scores: Tensor) -> Tensor:
    """1 - H / log n of importances -H, (batch, n) -> (batch, n), float32; 1 of a single patch."""
    return 1 + scores.float() / math.log(max(scores.shape[1], 2))
