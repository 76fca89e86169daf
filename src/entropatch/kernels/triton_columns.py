# pyright: reportCallIssue=false
# ruff: noqa: N803 (compile-time constants of a kernel are upper case)
"""Column norms of the mean head in Triton, in two passes over the logits; the n × n matrix never leaves the registers.

    L_i^h = log Σ_j e^{x_ij^h}                                        a program takes some rows of one head
    c_j   = (Σ_i Ā_ij^p)^(1/p),  Ā_ij = (1/H) Σ_h e^{x_ij^h - L_i^h}  a program takes some columns, a part of the rows

A column's largest Ā so far is drawn out of its sum of powers, and the parts of the rows are joined at the end.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from entropatch.kernels.triton_attention import dot_dtype

BLOCK = 32
MOST_PARTS = 16


@triton.jit
def _load(base, rows, live, stride, columns, width, DOT_DTYPE: tl.constexpr):
    at = base + rows[:, None] * stride + columns[None, :]
    return tl.load(at, mask=live[:, None] & (columns < width)[None, :], other=0.0).to(DOT_DTYPE)


@triton.jit
def _logits(q, k, scale, bias_at, live_keys, WITH_BIAS: tl.constexpr, PRECISION: tl.constexpr):
    x = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if WITH_BIAS:
        x += tl.load(bias_at, mask=live_keys, other=0.0)[None, :]
    return tl.where(live_keys[None, :], x, -1.0e30)


@triton.jit
def _log_sums_kernel(
    q_ptr, k_ptr, bias_ptr, sums_ptr, q_b, q_h, q_n, k_b, k_h, k_n, bias_b, heads, n, width, scale,
    WITH_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, DOT_DTYPE: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    rows, columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    q = _load(q_ptr + batch * q_b + head * q_h, rows, rows < n, q_n, columns, width, DOT_DTYPE)
    largest = tl.full([BLOCK_N], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, n, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = _load(k_ptr + batch * k_b + head * k_h, keys, keys < n, k_n, columns, width, DOT_DTYPE)
        x = _logits(q, k, scale, bias_ptr + batch * bias_b + keys, keys < n, WITH_BIAS, PRECISION)
        top = tl.maximum(largest, tl.max(x, 1))
        total = total * tl.exp(largest - top) + tl.sum(tl.exp(x - top[:, None]), 1)
        largest = top
    tl.store(sums_ptr + tl.program_id(1).to(tl.int64) * n + rows, largest + tl.log(total), mask=rows < n)


@triton.jit
def _columns_kernel(
    q_ptr, k_ptr, bias_ptr, sums_ptr, largest_ptr, total_ptr, q_b, q_h, q_n, k_b, k_h, k_n, bias_b,
    heads, n, width, prefix, scale, power, rows_each,
    WITH_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, DOT_DTYPE: tl.constexpr,
):  # fmt: skip
    part, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys = prefix + tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    largest = tl.zeros([BLOCK_N], tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(part * rows_each, tl.minimum(n, (part + 1) * rows_each), BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        mean = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
        for head in range(0, heads):
            q = _load(q_ptr + batch * q_b + head * q_h, rows, rows < n, q_n, columns, width, DOT_DTYPE)
            k = _load(k_ptr + batch * k_b + head * k_h, keys, keys < n, k_n, columns, width, DOT_DTYPE)
            x = _logits(q, k, scale, bias_ptr + batch * bias_b + keys, keys < n, WITH_BIAS, PRECISION)
            log_sums = tl.load(sums_ptr + (batch * heads + head) * n + rows, mask=rows < n, other=0.0)
            mean += tl.where((rows < n)[:, None] & (keys < n)[None, :], tl.exp(x - log_sums[:, None]), 0.0)
        mean = mean / heads
        top = tl.maximum(largest, tl.max(mean, 0))
        divisor = tl.where(top > 0, top, 1.0)
        # A power of the largest, infinity, leaves no sum: it is that largest itself.
        total = total * _power(largest / divisor, power) + tl.sum(_power(mean / divisor[None, :], power), 0)
        largest = top
    at = (batch * tl.num_programs(1) + part) * (n - prefix) + keys - prefix
    tl.store(largest_ptr + at, largest, mask=keys < n)
    tl.store(total_ptr + at, total, mask=keys < n)


@triton.jit
def _power(x, power):
    return tl.where(x > 0, tl.exp(power * tl.log(tl.where(x > 0, x, 1.0))), 0.0)


def launch(q: Tensor, k: Tensor, power: float, scale: float, prefix: int, key_bias: Tensor | None) -> Tensor:
    """q and k (B, H, N, d) -> (B, N - prefix), float32."""
    batch, heads, n, width = q.shape
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    bias = k if key_bias is None else key_bias if key_bias.stride(-1) == 1 else key_bias.contiguous()
    blocks = triton.cdiv(n, BLOCK)
    parts = min(blocks, MOST_PARTS)
    sums = torch.empty(batch, heads, n, dtype=torch.float32, device=q.device)
    largest, total = torch.empty(2, batch, parts, n - prefix, dtype=torch.float32, device=q.device)
    strides = (*q.stride()[:3], *k.stride()[:3], bias.stride(0))
    settings = {
        "WITH_BIAS": key_bias is not None,
        "BLOCK_N": BLOCK,
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        "DOT_DTYPE": dot_dtype(q.dtype),
    }
    _log_sums_kernel[(blocks, batch * heads)](q, k, bias, sums, *strides, heads, n, width, scale, **settings)
    _columns_kernel[(triton.cdiv(n - prefix, BLOCK), parts, batch)](
        q, k, bias, sums, largest, total, *strides, heads, n, width, prefix, scale,
        1.0 if math.isinf(power) else power, triton.cdiv(blocks, parts) * BLOCK, **settings,
    )  # fmt: skip
    top = largest.amax(1)
    if math.isinf(power):
        return top
    shares = (largest / torch.where(top > 0, top, 1.0)[:, None]) ** power
    return top * (total * shares).sum(1) ** (1 / power)
