"""ToMe's bipartite soft matching: of every second patch, those most like one of the others are merged into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.reductions.base import Reduction
from entropatch.reductions.merge import mean_keys, merging
from entropatch.tokens import Plan, Tokens, gather_tokens, highest


@dataclass(frozen=True)
class BipartiteMerge(Reduction):
    """Token merging (Bolya et al. 2023, "Token Merging: Your ViT But Faster", arXiv 2210.09461).

    The tokens are split by their place in the sequence, prefix tokens counted: A holds the even ones, B the odd ones.
    Each patch of A has one edge, to the patch of B whose key (mean over heads) has the highest cosine with its own; the
    n - k strongest edges are merged, as means weighted by the tokens' sizes. Prefix tokens neither merge nor are merged
    into.

        partner(a) = argmax_{b ∈ B} cos(k_a, k_b)        x_b ← (s_b x_b + Σ_a s_a x_a) / (s_b + Σ_a s_a)

    with s a token's size, and the sums over the merged a whose partner is b. The tokens that leave are those left of A,
    then B, which decides the next block's split: each in their order; on a model without a class token those left of A
    with the strongest edges first, as in the released code, which sorts them to have the class token in front. Of equal
    partners the lower index is taken, of equal edges that of the lower index stays. No criterion is asked.

    What differs from the released code: that merges register tokens as if they were patches; and of models that average
    their patches its patch for MAE weighs them by their sizes. Here, as in its patch for timm, the model's own head
    averages the tokens that are left.

    Fails where few patches are alike: it must merge as many all the same, and at most half of them in a block.

    Args:
        proportional: ToMe's proportional attention: later attention adds log(size) to the logits of a key.
    """

    kind: ClassVar[str] = "bipartite"
    outcome: ClassVar[str] = "merged in pairs"
    needs_scores: ClassVar[bool] = False

    proportional: bool = True

    def plan(self, attention: BlockAttention, tokens: Tokens, scores: Tensor | None, k: int) -> Plan:
        n, first = tokens.n, tokens.num_prefix_tokens % 2
        keys = mean_keys(attention)
        similar = keys[:, first::2] @ keys[:, 1 - first :: 2].transpose(1, 2)  # (batch, A, B)
        strength, partner = similar.max(2)
        order, stay = highest(-strength, strength.shape[1]), strength.shape[1] - (n - k)  # the strongest edges go
        staying, leaving = order[:, :stay], order[:, stay:].sort(dim=1).values
        staying = staying.sort(dim=1).values if attention.has_class_token else staying.flip(1)
        a = torch.arange(first, n, 2, device=keys.device).expand(keys.shape[0], -1)
        b = torch.arange(1 - first, n, 2, device=keys.device).expand(keys.shape[0], -1)
        kept = torch.cat((gather_tokens(a, staying), b), dim=1)
        targets = gather_tokens(partner, leaving) + staying.shape[1]
        return merging(tokens, kept, gather_tokens(a, leaving), targets)

    def most_removed(self, n: int) -> int:
        """Half of the patches: as many as A and B can pair."""
        return n // 2
