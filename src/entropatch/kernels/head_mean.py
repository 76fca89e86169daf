"""Statistics of the mean head Ā = (1/H) Σ_h A^h, A^h softmaxed over all tokens, block of rows by block of rows.

    column norm    c_j = (Σ_i Ā_ij^p)^(1/p)      over all query rows i, for each patch key j
    row entropy    e_i = -Σ_j Ā_ij log Ā_ij      over the patch keys j, for each patch query i; Ā is not renormalised

Plain ATen, so it runs on any device. In blocks no matrix of more than `BLOCK_LOGITS` entries, or one row, exists at
once. Powers are taken of Ā over the largest of its column so far, since a high power of a small number is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from entropatch.entropy import attention_logits, working_dtype

# Logits of one block of rows, of all heads and images together.
BLOCK_LOGITS = 4 * 1024 * 1024


def column_norms(
    q: Tensor,
    k: Tensor,
    power: float,
    scale: float,
    num_prefix: int,
    key_bias: Tensor | None = None,
    *,
    whole: bool = False,
) -> Tensor:
    """c_j: q and k (B, H, N, d) -> (B, N - num_prefix), float32 or wider; power in [1, ∞]."""
    largest = total = q.new_zeros((), dtype=working_dtype(q))
    for mean in _blocks(q, k, scale, key_bias, whole):
        x = mean[:, :, num_prefix:]
        top = x.amax(1)
        before, largest = largest, torch.maximum(largest, top)
        if not math.isinf(power):
            total = total * (before / _positive(largest)) ** power
            total = total + (x / _positive(largest)[:, None]).pow(power).sum(1)
    return largest if math.isinf(power) else largest * total ** (1 / power)


def row_entropies(
    q: Tensor, k: Tensor, scale: float, num_prefix: int, key_bias: Tensor | None = None, *, whole: bool = False
) -> Tensor:
    """e_i: q and k (B, H, N, d) -> (B, N - num_prefix), float32 or wider."""
    blocks = _blocks(q, k, scale, key_bias, whole)
    parts = [-torch.special.xlogy(x, x).sum(2) for x in (mean[:, :, num_prefix:] for mean in blocks)]
    return torch.cat(parts, dim=1)[:, num_prefix:]


def _blocks(q: Tensor, k: Tensor, scale: float, key_bias: Tensor | None, whole: bool) -> Iterator[Tensor]:
    """Rows of the mean head over all keys, (B, rows, N), block after block; all in one if `whole`."""
    batch, heads, n, _ = q.shape
    if whole:  # nor is a size looked at, which may be symbolic
        yield attention_logits(q, k, scale, key_bias).softmax(-1).mean(1)
        return
    step = max(1, BLOCK_LOGITS // max(batch * heads * n, 1))
    for start in range(0, n, step):
        yield attention_logits(q[:, :, start : start + step], k, scale, key_bias).softmax(-1).mean(1)


def _positive(largest: Tensor) -> Tensor:
    """A divisor: 1 for columns that nobody attends to at all."""
    return torch.where(largest > 0, largest, 1.0)
