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
from math import prod

import torch
from torch import Tensor

from entropatch.entropy import NEAR_ONE, entropy_from_log_probs, working_dtype

# Logits per thread in one block, of as many rows of one head, or heads and images of short sequences, as that takes.
# Each operator wakes the other threads, so blocks pay that are larger than a core's second-level cache; at 4 MiB of
# float32 they are still far from n×n.
BLOCK_LOGITS = 1024 * 1024


def attention_entropy(q: Tensor, k: Tensor, order: float, scale: float) -> Tensor:
    """Entropy of each query's attention over the keys: (B, H, n, d), (B, H, m, d) -> (B, H, n), in nats."""
    entropy = q.new_empty(q.shape[:3], dtype=working_dtype(q))
    rows, groups, space = _plan(q, k.shape[2], order)
    for group in groups:
        queries, keys = _heads(q[group], entropy.dtype), _heads(k[group], entropy.dtype)
        for r in range(0, q.shape[2], rows):
            x = _logits(queries[:, r : r + rows], keys, scale, space[0])
            spread = _softmax_entropy(x, x.amax(-1), order, space[-1])[2]
            entropy[group][:, :, r : r + rows] = spread.view(*q[group].shape[:2], -1)
    return entropy.clamp_min_(0)


def attend_with_entropy(
    q: Tensor, k: Tensor, v: Tensor, order: float, scale: float, num_prefix: int
) -> tuple[Tensor, Tensor]:
    """Attention output (B, H, N, d) over all tokens, and the entropy (B, H, N - num_prefix) of the patches."""
    batch, all_heads, n, _ = q.shape
    # Laid out as (B, N, H, d), what the projection after it reads.
    output = v.new_empty(batch, n, all_heads, v.shape[-1]).transpose(1, 2)
    entropy = q.new_empty(batch, all_heads, n - num_prefix, dtype=working_dtype(q))
    rows, groups, space = _plan(q, n - num_prefix, order)
    for group in groups:
        queries, keys, values = (_heads(x[group], entropy.dtype) for x in (q, k, v))
        lead = q[group].shape[:2]
        for r in range(0, n, rows):
            stop = min(r + rows, n)
            attended, spread = _attend_block(queries[:, r:stop], keys, values, order, scale, num_prefix, space)
            output[group][:, :, r:stop] = attended.view(*lead, stop - r, -1)
            first = max(num_prefix - r, 0)  # rows of prefix tokens, which have no entropy
            entropy[group][:, :, r + first - num_prefix : stop - num_prefix] = spread.view(*lead, -1)[:, :, first:]
    return output, entropy.clamp_min_(0)


def _plan(q: Tensor, m: int, order: float) -> tuple[int, list[tuple[slice, slice]], Tensor]:
    """Query rows of a block, the images and heads that go through together, and space for one block's matrices.

    The space (2, logits of a block) is for logits and probabilities; of size (1, …) where these take the logits' place.
    """
    batch, heads, n, _ = q.shape
    n, m = max(n, 1), max(m, 1)  # nothing to compute where there are none, and nothing to divide by
    rows = min(n, max(32, BLOCK_LOGITS // m))
    together = torch.get_num_threads() * max(1, BLOCK_LOGITS // (rows * m))
    images = min(max(1, together // max(heads, 1)), max(batch, 1))
    step = max(1, heads if images > 1 else min(heads, together))
    groups = [
        (slice(b, b + images), slice(h, h + step)) for b in range(0, batch, images) for h in range(0, heads, step)
    ]
    # One block after the other uses it, so that its pages stay mapped and in the cache.
    return rows, groups, q.new_empty(1 if _in_place(order) else 2, images * step * rows * m, dtype=working_dtype(q))


def _in_place(order: float) -> bool:
    """Whether the probabilities alone, without the logits, give output and entropy."""
    return math.isinf(order) or order == 2


def _heads(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, H, n, d) -> (B·H, n, d) in the given dtype; a view where the heads are those of one image."""
    # Contiguous at once: the default keeps the order of the strides, and reshape would copy a second time.
    return x[0].to(dtype) if x.shape[0] == 1 else x.to(dtype, memory_format=torch.contiguous_format).flatten(0, 1)


def _attend_block(
    q: Tensor, k: Tensor, v: Tensor, order: float, scale: float, num_prefix: int, space: Tensor
) -> tuple[Tensor, Tensor]:
    """Output and entropy of some rows of some heads: q (h, r, d), k and v (h, N, d) -> (h, r, d), (h, r)."""
    x = _logits(q, k[:, num_prefix:], scale, space[0])
    largest = x.amax(-1)
    probs, log_peak, entropy = _softmax_entropy(x, largest, order, space[-1])
    output = probs @ v[:, num_prefix:]
    if num_prefix == 0:
        return output, entropy
    # Where softmax has its maximum, p = exp(0) / Σ exp(x - max): so LSE = max - log max p.
    total = (largest - log_peak)[..., None]
    shares = torch.cat((total, _logits(q, k[:, :num_prefix], scale)), -1).softmax(-1)
    return output.mul_(shares[..., :1]).baddbmm_(shares[..., 1:], v[:, :num_prefix]), entropy


def _softmax_entropy(x: Tensor, largest: Tensor, order: float, space: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(x), the log of its largest entry, and its entropy, along the last dimension; overwrites `x`.

    `largest` is the maximum of x. The probabilities are written to the beginning of `space`, which may be that of x
    where `_in_place(order)`.
    """
    probs = space[: x.numel()].view(x.shape)
    if _in_place(order):
        torch.softmax(x, -1, out=probs)
        log_peak = probs.amax(-1).log()
        return probs, log_peak, -log_peak if order > 2 else -2 * torch.linalg.vector_norm(probs, 2, dim=-1).log()
    if abs(order - 1) < NEAR_ONE and order != 1:
        log_probs = torch.log_softmax(x, -1, out=x)
        return torch.exp(log_probs, out=probs), log_probs.amax(-1), entropy_from_log_probs(log_probs, order)
    torch.softmax(x, -1, out=probs)
    log_peak = probs.amax(-1).log()
    x.sub_(largest[..., None])
    if order == 1:
        # H = LSE(x) - Σ p x = -log max p - Σ p (x - max x): the terms of the sum have one sign.
        return probs, log_peak, -(log_peak + x.mul_(probs).sum(-1))
    # Σ p^α = (max p)^α Σ exp(α (x - max x)).
    powers = x.mul_(order).exp_().sum(-1)
    return probs, log_peak, (powers.log() / order + log_peak) * (order / (1 - order))


def _logits(q: Tensor, k: Tensor, scale: float, space: Tensor | None = None) -> Tensor:
    """scale · q·kᵀ: (h, r, d), (h, m, d) -> (h, r, m), written to the beginning of `space` if given."""
    shape = (q.shape[0], q.shape[1], k.shape[1])
    x = q.new_empty(shape) if space is None else space[: prod(shape)].view(shape)
    return torch.baddbmm(x, q, k.transpose(1, 2), beta=0, alpha=scale, out=x)  # beta = 0: x is not read
