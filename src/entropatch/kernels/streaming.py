"""The "streaming" backend: one pass over blocks of query rows that fit the cache; the n×n matrix never exists.

For a block of rows, with x the logits and keys split into prefix tokens c and patches p:

    x_p = s·q·k_pᵀ            once, for output and entropy alike
    P   = softmax(x_p)         the paper's patch attention distribution, exactly (Definition 1)
    H   = entropy of P         from P and the row maxima alone
    out = softmax([LSE(x_p), x_c]) · [P·v_p, v_c]

The last line merges the prefix tokens by their log-sum-exps, so that a prefix token that takes almost all attention
costs the patches no precision. Everything here is plain ATen, so it runs on any device; it is written for CPUs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from entropatch.entropy import NEAR_ONE, entropy_from_log_probs, working_dtype

# Logits per thread in one block: 2 MiB of float32, about what a core's second-level cache holds.
BLOCK_LOGITS = 512 * 1024


def attention_entropy(q: Tensor, k: Tensor, order: float, scale: float) -> Tensor:
    """Entropy of each query's attention over the keys: (B, H, n, d), (B, H, m, d) -> (B, H, n), in nats."""
    batch, all_heads, n, _ = q.shape
    entropy = q.new_empty(batch, all_heads, n, dtype=working_dtype(q))
    heads, rows = _block_shape(all_heads, n, k.shape[2])
    for b in range(batch):
        for h in range(0, all_heads, heads):
            keys = k[b, h : h + heads].to(entropy.dtype)
            for r in range(0, n, rows):
                x = _logits(q[b, h : h + heads, r : r + rows], keys, scale)
                entropy[b, h : h + heads, r : r + rows] = _softmax_entropy(x, order)[1]
    return entropy.clamp_min_(0)


def attend_with_entropy(
    q: Tensor, k: Tensor, v: Tensor, order: float, scale: float, num_prefix: int
) -> tuple[Tensor, Tensor]:
    """Attention output (B, H, N, d) over all tokens, and the entropy (B, H, N - num_prefix) of the patches."""
    batch, all_heads, n, _ = q.shape
    # Laid out as (B, N, H, d), what the projection after it reads.
    output = v.new_empty(batch, n, all_heads, v.shape[-1]).transpose(1, 2)
    entropy = q.new_empty(batch, all_heads, n - num_prefix, dtype=working_dtype(q))
    heads, rows = _block_shape(all_heads, n, n - num_prefix)
    for b in range(batch):
        for h in range(0, all_heads, heads):
            group = slice(h, h + heads)
            keys, values = k[b, group].to(entropy.dtype), v[b, group].to(entropy.dtype)
            for r in range(0, n, rows):
                block = slice(r, min(r + rows, n))
                attended, spread = _attend_block(q[b, group, block], keys, values, order, scale, num_prefix)
                output[b, group, block] = attended
                first = max(num_prefix - r, 0)  # rows of prefix tokens, which have no entropy
                entropy[b, group, block.start + first - num_prefix : block.stop - num_prefix] = spread[:, first:]
    return output, entropy.clamp_min_(0)


def _attend_block(
    q: Tensor, k: Tensor, v: Tensor, order: float, scale: float, num_prefix: int
) -> tuple[Tensor, Tensor]:
    """Output and entropy of some rows of some heads: q (h, r, d), k and v (h, N, d) -> (h, r, d), (h, r)."""
    x = _logits(q, k[:, num_prefix:], scale)
    largest = x.amax(-1) if num_prefix else None
    probs, entropy = _softmax_entropy(x, order)
    output = probs @ v[:, num_prefix:]
    if largest is None:
        return output, entropy
    # Where softmax has its maximum, p = exp(0) / Σ exp(x - max): so LSE = max - log max p.
    total = largest - probs.amax(-1).log()
    shares = torch.cat((total[..., None], _logits(q, k[:, :num_prefix], scale)), -1).softmax(-1)
    return torch.baddbmm(output * shares[..., :1], shares[..., 1:], v[:, :num_prefix]), entropy


def _softmax_entropy(x: Tensor, order: float) -> tuple[Tensor, Tensor]:
    """softmax(x) and its entropy along the last dimension; `x` is overwritten where that saves a pass."""
    if math.isinf(order):
        probs = torch.softmax(x, -1, out=x)
        return probs, -probs.amax(-1).log()
    if order == 2:
        probs = torch.softmax(x, -1, out=x)
        return probs, -2 * torch.linalg.vector_norm(probs, 2, dim=-1).log()
    if order == 1:
        # H = LSE(x) - Σ p x = -log max p + Σ p (max x - x): every term is non-negative.
        probs = x.softmax(-1)
        return probs, x.sub_(x.amax(-1, keepdim=True)).mul_(probs).sum(-1).neg_().sub_(probs.amax(-1).log())
    if abs(order - 1) < NEAR_ONE:
        log_probs = x.log_softmax(-1)
        return log_probs.exp(), entropy_from_log_probs(log_probs, order)
    # Σ p^α = (max p)^α Σ exp(α (x - max x)).
    probs = x.softmax(-1)
    powers = x.sub_(x.amax(-1, keepdim=True)).mul_(order).exp_().sum(-1)
    return probs, (powers.log() / order + probs.amax(-1).log()) * (order / (1 - order))


def _logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return (q.to(k.dtype) * scale) @ k.transpose(1, 2)


def _block_shape(heads: int, n: int, m: int) -> tuple[int, int]:
    """Heads and query rows of one block, so that each thread's share of the logits fits its cache."""
    n, m = max(n, 1), max(m, 1)  # nothing to compute where there are none, and nothing to divide by
    rows = min(n, max(32, BLOCK_LOGITS // m))
    return max(1, min(heads, torch.get_num_threads() * max(1, BLOCK_LOGITS // (rows * m)))), rows
