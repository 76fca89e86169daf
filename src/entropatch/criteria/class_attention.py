"""The class token's attention: EViT's criterion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.criteria.base import Criterion


@dataclass(frozen=True)
class ClassAttention(Criterion):
    """EViT's score (Liang et al. 2022): the class token's attention on each patch, mean over heads.

    With A^h the softmaxed attention of head h over all tokens, 0 the class token:

        s_j = (1/H) Σ_h A^h[0, j]

    With `reduction="fuse"` this is EViT; with `reduction="drop"` EViT without its fused token.

    Fails where the class token has not gathered anything yet, as in the first blocks, and on models without one.
    """

    needs_class_token: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "class attention"

    def importance(self, attention: BlockAttention) -> Tensor:
        return attention.class_attention().mean(1)

    def mass(self, scores: Tensor) -> Tensor:
        """The class token's attention on each patch, divided by its sum over the patches."""
        return scores.float() / scores.float().sum(1, keepdim=True)
