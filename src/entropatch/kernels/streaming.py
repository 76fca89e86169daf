"""The "streaming" backend: one pass over blocks of query rows that fit the cache; the n×n matrix never exists.

For a block of rows, with x the logits and keys split into prefix tokens c and patches p:

    x_p = s·q·k_pᵀ            once, for output and entropy alike
    w   = exp(x_p - max x_p)   so that P = w / Σ w is the paper's patch attention distribution (Definition 1)
    H   = entropy of P         from w, Σ w and x_p - max x_p
    out = softmax([LSE(x_p), x_c]) · [w·v_p / Σ w, v_c]

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
LN_2 = math.log(2)


def attention_entropy(q: Tensor, k: Tensor, order: float, scale: float) -> Tensor:
    """Entropy of each query's attention over the keys: (B, H, n, d), (B, H, m, d) -> (B, H, n), in nats."""
    entropy = q.new_empty(q.shape[:3], dtype=working_dtype(q))
    rows, groups, space = _plan(q, k.shape[2], order)
    for group in groups:
        queries, keys = _heads(q[group], entropy.dtype), _heads(k[group], entropy.dtype)
        for r in range(0, q.shape[2], rows):
            x = _logits(queries[:, r : r + rows], keys, scale, space[0])
            spread = _weights_entropy(x, x.amax(-1), order, space[-1])[2]
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

    The space (2, logits of a block) is for logits and weights; of size (1, …) where these take the logits' place.
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
    """Whether the weights alone, without the logits, give output and entropy."""
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
    weights, total, entropy = _weights_entropy(x, largest, order, space[-1])
    output = weights @ v[:, num_prefix:]
    if num_prefix == 0:
        return output.div_(total[..., None]), entropy
    log_sum = (largest + total.log())[..., None]
    shares = torch.cat((log_sum, _logits(q, k[:, :num_prefix], scale)), -1).softmax(-1)
    output.mul_(shares[..., :1] / total[..., None])
    return output.baddbmm_(shares[..., 1:], v[:, :num_prefix]), entropy


def _weights_entropy(x: Tensor, largest: Tensor, order: float, space: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """w = exp(x - max x), Z = Σ w and the entropy of w / Z, along the last dimension; overwrites `x`.

    Args:
        x: logits.
        largest: the maximum of x.
        order: of the entropy.
        space: w is written to its beginning; may be the space of x where `_in_place(order)`.
    """
    # In base 2, since PyTorch's exp2 is several times faster than its exp and softmax on CPUs. Converted only after the
    # subtraction: rounded before it, large logits would lose digits.
    x.sub_(largest[..., None]).mul_(1 / LN_2)
    weights = torch.exp2(x, out=space[: x.numel()].view(x.shape))
    total = weights.sum(-1)
    log_total = total.log()  # which is -log max p, since the largest weight is 1
    if math.isinf(order):
        return weights, total, log_total
    if order == 2:
        return weights, total, 2 * (log_total - torch.linalg.vector_norm(weights, 2, dim=-1).log())
    if order == 1:
        # H = log Z - Σ p log w: the terms of the sum have one sign.
        return weights, total, log_total - x.mul_(weights).sum(-1) / total * LN_2
    if abs(order - 1) < NEAR_ONE:
        return weights, total, entropy_from_log_probs(x.mul_(LN_2).sub_(log_total[..., None]), order)
    # Σ p^α = Σ w^α / Z^α.
    powers = x.mul_(order).exp2_().sum(-1)
    return weights, total, (powers.log() / order - log_total) * (order / (1 - order))


def _logits(q: Tensor, k: Tensor, scale: float, space: Tensor | None = None) -> Tensor:
    """scale · q·kᵀ: (h, r, d), (h, m, d) -> (h, r, m), written to the beginning of `space` if given."""
    shape = (q.shape[0], q.shape[1], k.shape[1])
    x = q.new_empty(shape) if space is None else space[: prod(shape)].view(shape)
    return torch.baddbmm(x, q, k.transpose(1, 2), beta=0, alpha=scale, out=x)  # beta = 0: x is not read
