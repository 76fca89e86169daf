"""Merging: each patch that does not stay becomes part of the kept one most like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from entropatch.attention import BlockAttention
from entropatch.reductions.base import Reduction
from entropatch.tokens import Plan, Tokens, gather_tokens, split


@dataclass(frozen=True)
class Merge(Reduction):
    """The k patches of the highest importance stay; every other one is merged into the most similar of them.

    Similarity is the cosine of the keys' mean over heads, as in ToMe (Bolya et al. 2023); ties go to the lower index.
    A merged token is the mean of its tokens, weighted by their sizes s, and stands where the kept one stood:

        x_j ← (s_j x_j + Σ_i s_i x_i) / (s_j + Σ_i s_i)        over the i ∉ K with argmax_{k ∈ K} cos(k_i, k_k) = j

    Args:
        proportional: whether later attention counts a token as many times as it stands for patches.
    """

    kind: ClassVar[str] = "merge"
    outcome: ClassVar[str] = "merged"

    proportional: bool = True

    def plan(self, attention: BlockAttention, tokens: Tokens, scores: Tensor | None, k: int) -> Plan:
        assert scores is not None
        kept, sources = split(scores, k)
        keys = mean_keys(attention)
        similar = gather_tokens(keys, sources) @ gather_tokens(keys, kept).transpose(1, 2)
        return merging(tokens, kept, sources, similar.argmax(2))


def mean_keys(attention: BlockAttention) -> Tensor:
    """The patches' keys, mean over heads, of unit length: (batch, n, head width), float32 or more, no gradients."""
    keys = attention.k[:, :, attention.num_prefix_tokens :].detach()
    keys = keys.to(torch.promote_types(keys.dtype, torch.float32)).mean(1)
    return torch.nn.functional.normalize(keys, dim=-1)


def merging(tokens: Tokens, kept: Tensor, sources: Tensor, targets: Tensor) -> Plan:
    """The plan that merges `sources` into `targets` among `kept`, every token weighing as much as its size."""
    ones = torch.ones(kept.shape[0], tokens.n, dtype=torch.float32, device=kept.device)
    sizes = ones if tokens.sizes is None else tokens.sizes
    own, moved = gather_tokens(sizes, kept), gather_tokens(sizes, sources)
    whole = own.scatter_add(1, targets, moved)
    return Plan(
        kept=kept, sources=sources, targets=targets, weights=own / whole, shares=moved / whole.gather(1, targets)
    )
