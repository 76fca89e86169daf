# pyright: reportCallIssue=false
# ruff: noqa: N803 (compile-time constants of a kernel are upper case)
"""The program of the "triton" backend: attention output and entropy from one flash-attention pass over the keys.

Per query row, keys arrive in blocks; m is the running maximum over the *patch* keys and y = x - m ≤ 0:

    Z = Σ e^y          A = Σ e^y · y                (order 1)         H = log Z - A / Z
                       A = Σ e^{αy}                 (far from 1)      H = (log A - α log Z) / (1 - α)
                       A = Σ e^y (e^{ty} - 1)       (near 1, t = α-1) H = log Z - log(1 + A/Z) / t
                       none                         (order ∞)         H = log Z

The key bias, if any, is added to x. When m rises by -δ, the sums are rescaled exactly. The prefix keys come last and
reach the output only, so a prefix token that takes almost all attention costs the entropy no precision. The n×n matrix
never leaves the registers.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from entropatch.entropy import NEAR_ONE
from entropatch.kernels.interpreter import interpreting

SHANNON, FAR, NEAR, INFINITE = (tl.constexpr(kind) for kind in range(4))


@triton.jit
def _power_minus_one(y, order):
    """e^y (e^{ty} - 1) with t = order - 1, without cancellation for small ty and without overflow for large."""
    z = (order - 1.0) * y
    series = z * (1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5 * (1 + z / 6 * (1 + z / 7 * (1 + z / 8)))))))
    return tl.where(tl.abs(z) < 0.5, tl.exp(y) * series, tl.exp(order * y) - tl.exp(y))


@triton.jit
def _fold_entropy(y, alive, delta, z, a, order, KIND: tl.constexpr):
    """The row sums Z and A after the maximum moved by `delta` and a block of shifted logits `y` came in."""
    e = tl.where(alive, tl.exp(y), 0.0)
    decay = tl.exp(delta)
    if KIND == SHANNON:
        a = decay * (a + tl.where(z > 0, delta, 0.0) * z) + tl.sum(e * tl.where(alive, y, 0.0), 1)
    elif KIND == FAR:
        a = tl.exp(order * delta) * a + tl.sum(tl.where(alive, tl.exp(order * y), 0.0), 1)
    elif KIND == NEAR:
        a = tl.exp(order * delta) * a + _power_minus_one(delta, order) * z
        a += tl.sum(tl.where(alive, _power_minus_one(tl.where(alive, y, 0.0), order), 0.0), 1)
    return e, decay * z + tl.sum(e, 1), a


@triton.jit
def _finish_entropy(z, a, order, KIND: tl.constexpr):
    if KIND == SHANNON:
        entropy = tl.log(z) - a / z
    elif KIND == FAR:
        entropy = (tl.log(a) - order * tl.log(z)) / (1.0 - order)
    elif KIND == NEAR:
        u = a / z
        w = 1.0 + u
        # Kahan's log1p: the rounding of 1 + u cancels in the quotient.
        log1p = tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))
        entropy = tl.log(z) - log1p / (order - 1.0)
    else:
        entropy = tl.log(z)
    return tl.maximum(entropy, 0.0)


@triton.jit
def _attention_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr, entropy_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, bias_b, o_b, o_h, o_n,
    heads, n_queries, n_keys, prefix, order, scale,
    KIND: tl.constexpr, WITH_OUTPUT: tl.constexpr, WITH_BIAS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr, DOT_DTYPE: tl.constexpr,
):  # fmt: skip
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    live_rows, live_columns = rows < n_queries, columns < WIDTH
    batch64, head64 = batch.to(tl.int64), head.to(tl.int64)
    q_at = q_ptr + batch64 * q_b + head64 * q_h + rows[:, None] * q_n + columns[None, :]
    q = tl.load(q_at, mask=live_rows[:, None] & live_columns[None, :], other=0.0).to(DOT_DTYPE)
    k_base, v_base = k_ptr + batch64 * k_b + head64 * k_h, v_ptr + batch64 * v_b + head64 * v_h

    m = tl.full([BLOCK_M], -1.0e30, tl.float32)
    z = tl.zeros([BLOCK_M], tl.float32)
    a = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(prefix, n_keys, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        live = keys < n_keys
        at = live[None, :] & live_columns[:, None]
        k = tl.load(k_base + keys[None, :] * k_n + columns[:, None], mask=at, other=0.0).to(DOT_DTYPE)
        x = tl.dot(q, k, input_precision=PRECISION) * scale
        if WITH_BIAS:
            x += tl.load(bias_ptr + batch64 * bias_b + keys, mask=live, other=0.0)[None, :]
        x = tl.where(live[None, :], x, -1.0e30)
        m_new = tl.maximum(m, tl.max(x, 1))
        e, z, a = _fold_entropy(x - m_new[:, None], live[None, :], m - m_new, z, a, order, KIND)
        if WITH_OUTPUT:
            at_v = live[:, None] & live_columns[None, :]
            v = tl.load(v_base + keys[:, None] * v_n + columns[None, :], mask=at_v, other=0.0).to(DOT_DTYPE)
            out = out * tl.exp(m - m_new)[:, None] + tl.dot(e.to(DOT_DTYPE), v, input_precision=PRECISION)
        m = m_new

    entropy = _finish_entropy(z, a, order, KIND)
    patches = rows - prefix
    at_entropy = entropy_ptr + tl.program_id(1).to(tl.int64) * (n_queries - prefix) + patches
    tl.store(at_entropy, entropy, mask=live_rows & (patches >= 0))
    if WITH_OUTPUT:
        if BLOCK_P > 0:
            keys = tl.arange(0, BLOCK_P)
            live = keys < prefix
            at = live[None, :] & live_columns[:, None]
            k = tl.load(k_base + keys[None, :] * k_n + columns[:, None], mask=at, other=0.0).to(DOT_DTYPE)
            x = tl.dot(q, k, input_precision=PRECISION) * scale
            if WITH_BIAS:
                x += tl.load(bias_ptr + batch64 * bias_b + keys, mask=live, other=0.0)[None, :]
            x = tl.where(live[None, :], x, -1.0e30)
            m_new = tl.maximum(m, tl.max(x, 1))
            e = tl.where(live[None, :], tl.exp(x - m_new[:, None]), 0.0)
            at_v = live[:, None] & live_columns[None, :]
            v = tl.load(v_base + keys[:, None] * v_n + columns[None, :], mask=at_v, other=0.0).to(DOT_DTYPE)
            decay = tl.exp(m - m_new)
            out = out * decay[:, None] + tl.dot(e.to(DOT_DTYPE), v, input_precision=PRECISION)
            z = z * decay + tl.sum(e, 1)
        at_out = out_ptr + batch64 * o_b + head64 * o_h + rows[:, None] * o_n + columns[None, :]
        tl.store(
            at_out, (out / z[:, None]).to(out_ptr.dtype.element_ty), mask=live_rows[:, None] & live_columns[None, :]
        )


def launch(
    q: Tensor, k: Tensor, v: Tensor | None, order: float, scale: float, prefix: int, key_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention output, meaningless without values `v`, and entropy in float32, as in `flash`."""
    batch, heads, n, width = q.shape
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    values = k if v is None else v if v.stride(-1) == 1 else v.contiguous()
    bias = k if key_bias is None else key_bias if key_bias.stride(-1) == 1 else key_bias.contiguous()
    # Laid out as (B, N, H, d), what the projection after it reads. Without values nothing is written to it.
    shape = (batch, n, heads, width) if v is not None else (1, 1, 1, 1)
    output = torch.empty(shape, dtype=values.dtype, device=q.device).transpose(1, 2)
    entropy = torch.empty(batch, heads, n - prefix, dtype=torch.float32, device=q.device)
    block_m, block_n, warps = _block_sizes(q.dtype, width, n)
    _attention_kernel[(triton.cdiv(n, block_m), batch * heads)](
        q, k, values, bias, output, entropy,
        *q.stride()[:3], *k.stride()[:3], *values.stride()[:3], bias.stride(0), *output.stride()[:3],
        heads, n, k.shape[2], prefix, 0.0 if math.isinf(order) else order, scale,
        KIND=_kind(order), WITH_OUTPUT=v is not None, WITH_BIAS=key_bias is not None, WIDTH=width,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=max(16, triton.next_power_of_2(width)),
        BLOCK_P=max(16, triton.next_power_of_2(prefix)) if prefix else 0,
        PRECISION="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        DOT_DTYPE=dot_dtype(q.dtype), num_warps=warps,
    )  # fmt: skip
    return output, entropy


def _kind(order: float) -> tl.constexpr:
    if math.isinf(order):
        return INFINITE
    if order == 1:
        return SHANNON
    return NEAR if abs(order - 1) < NEAR_ONE else FAR


def dot_dtype(dtype: torch.dtype) -> tl.dtype:
    """The type products are taken in: the queries' own, but not bfloat16 under the interpreter, which fails at it."""
    if dtype == torch.bfloat16 and interpreting():
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype]


def _block_sizes(dtype: torch.dtype, width: int, n: int) -> tuple[int, int, int]:
    """Query rows and keys per block, and warps. Wide heads and float32 need smaller blocks to stay in registers."""
    if dtype == torch.float32 or width > 64:
        return (64 if n > 32 else 16), 32, 4
    return (128 if n > 64 else 32), 64, 4
