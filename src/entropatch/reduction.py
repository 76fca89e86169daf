"""From scores to fewer tokens, and back to the grid. Pure functions on tensors.

Shapes: x (batch, prefix + patches, width), scores (batch, patches), kept (batch, k) places among the patches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from entropatch.attention import BlockAttention


def select(scores: Tensor, k: int) -> Tensor:
    """Places of the k highest scores, ascending so that kept tokens stay in raster order: (batch, n) -> (batch, k).

    Ties go to the lower place on every device (a stable sort; `topk` breaks ties differently on CPU and GPU).
    """
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return best.sort(dim=1).values


def gather_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """Tokens at the given places: (batch, n, …) and (batch, k) -> (batch, k, …)."""
    index = places.reshape(*places.shape, *(1,) * (tokens.ndim - 2))
    return tokens.gather(1, index.expand(-1, -1, *tokens.shape[2:]))


def dropped_places(kept: Tensor, n: int) -> Tensor:
    """The places that are not kept, ascending: (batch, k) -> (batch, n - k)."""
    gone = torch.ones(kept.shape[0], n, dtype=torch.bool, device=kept.device).scatter(1, kept, False)
    return select(gone.float(), n - kept.shape[1])


def drop(x: Tensor, kept: Tensor, attention: BlockAttention) -> Tensor:
    """Prefix tokens and the kept patches, in order: (batch, prefix + k, width)."""
    prefix = attention.num_prefix_tokens
    return torch.cat((x[:, :prefix], gather_tokens(x[:, prefix:], kept)), dim=1)


def fuse(x: Tensor, kept: Tensor, attention: BlockAttention) -> Tensor:
    """`drop`, with EViT's fused token appended last: (batch, prefix + k + 1, width).

    The fused token is Σ_j a_j x_j over the dropped tokens, a_j the class token's attention, mean over heads, not
    renormalised (Liang et al. 2022).
    """
    patches = x[:, attention.num_prefix_tokens :]
    weights = attention.class_attention().mean(1).scatter(1, kept, 0.0)
    fused = torch.einsum("bn,bnc->bc", weights.to(x.dtype), patches)[:, None]
    return torch.cat((drop(x, kept, attention), fused), dim=1)


REDUCTIONS: dict[str, Callable[[Tensor, Tensor, BlockAttention], Tensor]] = {"drop": drop, "fuse": fuse}


def scatter_tokens(canvas: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    """`canvas` (batch, n, …) with `tokens` (batch, k, …) written at `places` (batch, k); out of place."""
    index = places.reshape(*places.shape, *(1,) * (tokens.ndim - 2)).expand_as(tokens)
    return canvas.scatter(1, index, tokens.to(canvas.dtype))
