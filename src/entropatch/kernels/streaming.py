"""The "streaming" backend: one pass over blocks of query rows, a core to a block; the n×n matrix never exists.

For a block of rows, with x the logits and keys split into prefix tokens c and patches p:

    x_p = s·q·k_pᵀ + b_p      once, for output and entropy alike; b is the key bias
    w   = exp(x_p - max x_p)   so that P = w / Σ w is the paper's patch attention distribution (Definition 1)
    H   = entropy of P         from w, Σ w and x_p - max x_p
    out = softmax([LSE(x_p), x_c]) · [w·v_p / Σ w, v_c]

The last line merges the prefix tokens by their log-sum-exps, so that a prefix token that takes almost all attention
costs the patches no precision. Everything here is plain ATen, so it runs on any device; it is written for CPUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor

from entropatch.entropy import NEAR_ONE, working_dtype
from entropatch.kernels.backend import Backend
from entropatch.kernels.near_one import LN_2, needs_spare, power_gap
from entropatch.kernels.workers import number_of_workers, share_out

# Logits of one block, of as many rows of one head, or heads and images of short sequences, as that takes: in all where
# each worker has its own blocks, for each thread where PyTorch spreads a block's operators. Smaller ones would fit a
# core's second-level cache, but then Python's time between the operators, and the waking of threads, shows.
WORKER_LOGITS = 512 * 1024
THREAD_LOGITS = 1024 * 1024
# Fewer logits are not worth waking other threads for.
SHARED_LOGITS = 64 * 1024
# For each worker, so that none waits long for the last one.
TASKS = 4


def attention_entropy(q: Tensor, k: Tensor, order: float, scale: float, key_bias: Tensor | None = None) -> Tensor:
    """Entropy of each query's attention over the keys: (B, H, n, d), (B, H, m, d) -> (B, H, n), in nats."""
    entropy = q.new_empty(q.shape[:3], dtype=working_dtype(q))

    def work(task: _Task, space: _Space) -> None:
        queries, keys = (space.heads(i, x[task.group]) for i, x in enumerate((q, k)))
        lead = q[task.group].shape[:2]
        bias = _bias_of(key_bias, task.group, lead[1])
        for rows in task.blocks:
            x = _logits(queries[:, rows], keys, scale, bias, space.logits)
            spread = _weights_entropy(x, x.amax(-1), order, space)[2]
            entropy[task.group][:, :, rows] = spread.view(*lead, -1)

    share_out(work, *_plan((q, k), k.shape[2], order))
    return entropy.clamp_min_(0)


def attend_with_entropy(
    q: Tensor, k: Tensor, v: Tensor, order: float, scale: float, num_prefix: int, key_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention output (B, H, N, d) over all tokens, and the entropy (B, H, N - num_prefix) of the patches."""
    batch, all_heads, n, _ = q.shape
    # Laid out as (B, N, H, d), what the projection after it reads.
    output = v.new_empty(batch, n, all_heads, v.shape[-1]).transpose(1, 2)
    entropy = q.new_empty(batch, all_heads, n - num_prefix, dtype=working_dtype(q))

    def work(task: _Task, space: _Space) -> None:
        queries, keys, values = (space.heads(i, x[task.group]) for i, x in enumerate((q, k, v)))
        lead = q[task.group].shape[:2]
        bias = _bias_of(key_bias, task.group, lead[1])
        for rows in task.blocks:
            attended, spread = _attend_block(queries[:, rows], keys, values, bias, order, scale, num_prefix, space)
            output[task.group][:, :, rows] = attended.view(*lead, *attended.shape[1:])
            first = max(num_prefix - rows.start, 0)  # rows of prefix tokens, which have no entropy
            patches = slice(rows.start + first - num_prefix, rows.stop - num_prefix)
            entropy[task.group][:, :, patches] = spread.view(*lead, -1)[:, :, first:]

    share_out(work, *_plan((q, k, v), n - num_prefix, order))
    return output, entropy.clamp_min_(0)


@dataclass(frozen=True)
class _Task:
    """Blocks of query rows of some images' heads."""

    group: tuple[slice, slice]  # images, heads
    blocks: list[slice]


@dataclass(frozen=True)
class _Space:
    """What one worker writes block after block into, so that its pages stay mapped and in the cache."""

    logits: Tensor
    weights: Tensor  # the memory of the logits where the weights may take their place
    spare: Tensor  # that of the weights where the order needs no third matrix
    copies: list[Tensor]  # of queries, keys and values, (heads, n, d) each; none where views will do

    def heads(self, i: int, x: Tensor) -> Tensor:
        """(B, H, n, d) -> (B·H, n, d) in the working dtype; `i` is the tensor's place among the copies."""
        if not self.copies:
            return x[0]
        copy = self.copies[i][: x.shape[0] * x.shape[1]]
        copy.view(x.shape).copy_(x)
        return copy


def _plan(tensors: tuple[Tensor, ...], m: int, order: float) -> tuple[list[_Task], list[_Space]]:
    """The parts of the work and a space for each worker; the first of the tensors are the queries, for m patch keys."""
    batch, heads, n, _ = tensors[0].shape
    workers = number_of_workers(tensors[0].device) if batch * heads * n * m >= SHARED_LOGITS else 1
    logits, threads = (WORKER_LOGITS, 1) if workers > 1 else (THREAD_LOGITS, torch.get_num_threads())
    rows = max(1, min(n, max(32, logits // max(m, 1))))  # at least 1: nothing to divide by where there are none
    together = min(threads * max(1, logits // max(rows * m, 1)), ceil(batch * heads / workers))
    images = max(1, min(together // max(heads, 1), batch))
    step = max(1, heads if images > 1 else min(heads, together))
    groups = [
        (slice(b, b + images), slice(h, h + step)) for b in range(0, batch, images) for h in range(0, heads, step)
    ]
    blocks = [slice(r, min(r + rows, n)) for r in range(0, n, rows)]
    parts = min(len(blocks), ceil(TASKS * workers / max(len(groups), 1))) if workers > 1 else 1
    tasks = [_Task(group, blocks[i::parts]) for group in groups for i in range(parts)]
    return tasks, _spaces(tensors, min(workers, len(tasks)), images * step, rows * m, order)


def _spaces(tensors: tuple[Tensor, ...], workers: int, heads: int, logits: int, order: float) -> list[_Space]:
    """Space for each worker's blocks, of so many logits of each of so many heads."""
    # Made here and not by the workers: a record of this thread's memory then shows it.
    q = tensors[0]
    count = 1 if _in_place(order) else 3 if needs_spare(order, working_dtype(q)) else 2
    matrices = q.new_empty(workers, count, heads * logits, dtype=working_dtype(q))
    views = q.dtype == matrices.dtype and heads <= q.shape[1]  # the heads are those of one image
    copies = [x.new_empty(workers, heads, *x.shape[2:], dtype=matrices.dtype) for x in tensors] if not views else []

    def space(worker: int) -> _Space:
        logits, weights, spare = (matrices[worker, min(place, count - 1)] for place in range(3))
        return _Space(logits, weights, spare, [copy[worker] for copy in copies])

    return [space(worker) for worker in range(workers)]


def _in_place(order: float) -> bool:
    """Whether the weights alone, without the logits, give output and entropy."""
    return math.isinf(order) or order == 2


def _attend_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    order: float,
    scale: float,
    num_prefix: int,
    space: _Space,
) -> tuple[Tensor, Tensor]:
    """Output and entropy of some rows of some heads: q (h, r, d), k and v (h, N, d) -> (h, r, d), (h, r)."""
    prefix_bias, patch_bias = (None, None) if bias is None else (bias[..., :num_prefix], bias[..., num_prefix:])
    x = _logits(q, k[:, num_prefix:], scale, patch_bias, space.logits)
    largest = x.amax(-1)
    weights, total, entropy = _weights_entropy(x, largest, order, space)
    output = weights @ v[:, num_prefix:]
    if num_prefix == 0:
        return output.div_(total[..., None]), entropy
    log_sum = (largest + total.log())[..., None]
    shares = torch.cat((log_sum, _logits(q, k[:, :num_prefix], scale, prefix_bias)), -1).softmax(-1)
    output.mul_(shares[..., :1] / total[..., None])
    return output.baddbmm_(shares[..., 1:], v[:, :num_prefix]), entropy


def _weights_entropy(x: Tensor, largest: Tensor, order: float, space: _Space) -> tuple[Tensor, Tensor, Tensor]:
    """w = exp(x - max x), Z = Σ w and the entropy of w / Z, along the last dimension; overwrites `x`.

    Args:
        x: logits.
        largest: the maximum of x.
        order: of the entropy.
        space: w is written to the beginning of its weights, which may be where x lies where `_in_place(order)`.
    """
    # In base 2, since PyTorch's exp2 is several times faster than its exp and softmax on CPUs. Converted only after the
    # subtraction: rounded before it, large logits would lose digits.
    x.sub_(largest[..., None]).mul_(1 / LN_2)
    weights = torch.exp2(x, out=space.weights[: x.numel()].view(x.shape))
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
        gap = power_gap(x, weights, order - 1, space.spare[: x.numel()].view(x.shape))
        return weights, total, log_total - torch.log1p(gap / total) / (order - 1)
    # Σ p^α = Σ w^α / Z^α.
    powers = x.mul_(order).exp2_().sum(-1)
    return weights, total, (powers.log() / order - log_total) * (order / (1 - order))


def _bias_of(key_bias: Tensor | None, group: tuple[slice, slice], heads: int) -> Tensor | None:
    """The bias (B, m) of the keys of some images' heads, for their rows: (heads of all of them, 1, m)."""
    if key_bias is None:
        return None
    some = key_bias[group[0], None, None]
    return some.expand(-1, heads, -1, -1).flatten(0, 1)


def _logits(q: Tensor, k: Tensor, scale: float, bias: Tensor | None, space: Tensor | None = None) -> Tensor:
    """scale · q·kᵀ + bias: (h, r, d), (h, m, d) -> (h, r, m), written to the beginning of `space` if given."""
    shape = (q.shape[0], q.shape[1], k.shape[1])
    x = q.new_empty(shape) if space is None else space[: prod(shape)].view(shape)
    if bias is not None:
        return torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale, out=x)
    return torch.baddbmm(x, q, k.transpose(1, 2), beta=0, alpha=scale, out=x)  # beta = 0: x is not read


BACKEND = Backend("streaming", lambda q: None, attention_entropy, attend_with_entropy)
