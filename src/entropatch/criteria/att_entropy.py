"""AttEntropy: the entropy of the mean head's attention, averaged over the blocks so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.criteria.base import Criterion


@dataclass(frozen=True)
class AttEntropy(Criterion):
    """AttEntropy's map (Lis 2024), low = keep: objects have a low one.

    With Ā^l = (1/H) Σ_h A^h of block l, the rows and columns of the class token and of other prefix tokens left out and
    the rest not renormalised, and E^l_i = -Σ_j Ā^l_ij log Ā^l_ij in nats (0 log 0 = 0), the importance in block L is

        s_i = -(1/(L+1)) Σ_{l ≤ L} E^l_i

    Unlike `Renyi` it is the entropy of the mean head, of what is left of a softmax over all tokens. The original makes
    a map of it to find unknown objects in scenes, over chosen layers, and prunes nothing; here the average runs over
    all blocks up to the one that prunes, each over the tokens that are there. A token that is appended begins with the
    mean of its tokens.
    """

    kind: ClassVar[str] = "AttEntropy"
    knows_padding: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "AttEntropy"

    @property
    def followed(self) -> tuple[Criterion, ...]:
        return (self,)

    def follow(self, attention: BlockAttention) -> Tensor:
        """The sum of the entropies so far, (batch, patches)."""
        entropy = attention.mean_head_entropy()
        return entropy if attention.block == 0 else state_before(self, attention) + entropy

    def importance(self, attention: BlockAttention) -> Tensor:
        return -state_after(self, attention) / (attention.block + 1)


def state_before(criterion: Criterion, attention: BlockAttention) -> Tensor:
    """What a criterion handed on from the block before. Raises ValueError if it did not see that."""
    state = attention.carried.get(criterion.state_key)
    if state is None:
        raise ValueError(
            f"{type(criterion).__name__} looks at every block from the first, but block {attention.block} was shown to "
            "it without those before; prune a model with it, which shows it all of them."
        )
    return state


def state_after(criterion: Criterion, attention: BlockAttention) -> Tensor:
    """What it hands on from this block; asked again of an attention by itself, which nobody follows."""
    state = attention.carried.get(criterion.state_key)
    if state is not None:
        return state
    with torch.no_grad():
        return criterion.follow(attention)
