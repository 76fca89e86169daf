"""How much, and from how few, a patch is attended to: the norm of its column of the mean head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.criteria.base import Criterion


@dataclass(frozen=True)
class ColumnNorm(Criterion):
    """Col-Ln (Su 2026): the ℓ_p norm of the attention that a patch receives; large = keep.

    With Ā = (1/H) Σ_h A^h over all tokens, the class token's query and those of other prefix tokens among the rows:

        s_j = (Σ_i Ā_ij^p)^(1/p)

    which is the column's sum times exp(-((p-1)/p)·H_p) of the column divided by its sum: mass and concentration at
    once. No class token is needed. Without the n×n matrix. The original drops after blocks 0 … 5; here the setting says
    where, in the middle of a block.

    Args:
        power: p in [1, ∞]; 1 is the column's sum, ∞ its largest entry.
    """

    power: float = 4.0

    def __post_init__(self) -> None:
        given: Any = self.power
        if isinstance(given, bool) or not isinstance(given, Real):
            raise TypeError(f"power must be a number in [1, ∞], but got {given!r}.")
        if not float(given) >= 1:  # NaN too
            raise ValueError(f"power must be at least 1, since no other is a norm, but got {given!r}.")
        object.__setattr__(self, "power", float(given))

    @property
    def label(self) -> str:
        return "column ℓ" + ("∞" if math.isinf(self.power) else f"{self.power:.4g}")

    def importance(self, attention: BlockAttention) -> Tensor:
        return attention.column_norms(self.power)

    def mass(self, scores: Tensor) -> Tensor:
        """Each patch's norm, divided by the sum over the patches."""
        return scores.float() / scores.float().sum(1, keepdim=True)
