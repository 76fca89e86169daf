"""The backends as operators that torch.compile, torch.export and FLOP counters see: `torch.ops.entropatch`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from entropatch.entropy import finite_bias, representable, without_autocast, working_dtype
from entropatch.kernels.backward import backward
from entropatch.kernels.flop_formulas import register_when_counted
from entropatch.kernels.head_mean_ops import column_norms, row_entropies
from entropatch.kernels.registry import named

__all__ = ["attend_with_entropy", "attention_entropy", "column_norms", "row_entropies"]


def attention_entropy(
    q: Tensor, k: Tensor, order: float, scale: float, backend: str, key_bias: Tensor | None = None
) -> Tensor:
    """Entropy of each query's attention over the keys: (B, H, n, d), (B, H, m, d) -> (B, H, n), in nats.

    `key_bias` (B, m), finite or -inf, is added to every logit of its key.
    """
    if key_bias is not None:
        key_bias = finite_bias(key_bias, working_dtype(q))
    if named(backend).plain:
        return named(backend).attention_entropy(q, k, order, scale, key_bias)
    return _attention_entropy(q, k, representable(order), scale, backend, key_bias)


def attend_with_entropy(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    order: float,
    scale: float,
    num_prefix: int,
    backend: str,
    key_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention output (B, H, N, d) over all tokens and entropy (B, H, N - num_prefix) of the patches, together.

    `key_bias` (B, N), finite or -inf, is added to every logit of its key.
    """
    if key_bias is not None:
        key_bias = finite_bias(key_bias, working_dtype(q))
    if named(backend).plain:
        return named(backend).attend_with_entropy(q, k, v, order, scale, num_prefix, key_bias)
    return _attend_with_entropy(q, k, v, representable(order), scale, num_prefix, backend, key_bias)


@torch.library.custom_op("entropatch::attention_entropy", mutates_args=())
def _attention_entropy(
    q: Tensor, k: Tensor, order: float, scale: float, backend: str, key_bias: Tensor | None = None
) -> Tensor:
    with without_autocast(q):
        return named(backend).attention_entropy(q, k, order, scale, key_bias)


@_attention_entropy.register_fake
def _(q: Tensor, k: Tensor, order: float, scale: float, backend: str, key_bias: Tensor | None = None) -> Tensor:
    return q.new_empty(q.shape[:-1], dtype=working_dtype(q))


@torch.library.custom_op("entropatch::attend_with_entropy", mutates_args=())
def _attend_with_entropy(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    order: float,
    scale: float,
    num_prefix: int,
    backend: str,
    key_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    with without_autocast(q):
        return named(backend).attend_with_entropy(q, k, v, order, scale, num_prefix, key_bias)


@_attend_with_entropy.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    order: float,
    scale: float,
    num_prefix: int,
    backend: str,
    key_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    batch, heads, n, _ = q.shape
    output = v.new_empty(batch, n, heads, v.shape[-1]).transpose(1, 2)
    return output, q.new_empty(batch, heads, n - num_prefix, dtype=working_dtype(q))


@torch.library.custom_op("entropatch::attention_backward", mutates_args=())
def _attention_backward(
    grad_output: Tensor | None,
    grad_entropy: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    order: float,
    scale: float,
    num_prefix: int,
    key_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the key bias; an operator returns no None, so an empty tensor stands for it."""
    with without_autocast(q):
        dq, dk, dv, db = backward(grad_output, grad_entropy, q, k, v, order, scale, num_prefix, key_bias)
    return dq, dk, q.new_empty(0) if dv is None else dv, q.new_empty(0) if db is None else db


@_attention_backward.register_fake
def _(
    grad_output: Tensor | None,
    grad_entropy: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    order: float,
    scale: float,
    num_prefix: int,
    key_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(  # pyright: ignore[reportReturnType]
        q.new_empty(0) if x is None else x.new_empty(x.shape) for x in (q, k, v, key_bias)
    )


def _refuse_second_derivatives(ctx: Any, *grads: Tensor) -> Any:
    raise NotImplementedError(
        'attention entropy has no second derivatives in its fast backends; use backend="reference" for them.'
    )


_attention_backward.register_autograd(_refuse_second_derivatives)


def _keep_for_entropy(ctx: Any, inputs: Any, output: Tensor) -> None:
    q, k, ctx.order, ctx.scale, _, key_bias = inputs
    ctx.save_for_backward(q, k, key_bias)


def _entropy_backward(ctx: Any, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
    q, k, key_bias = ctx.saved_tensors
    dq, dk, _, db = _attention_backward(None, grad_entropy, q, k, None, ctx.order, ctx.scale, 0, key_bias)
    return dq, dk, None, None, None, None if key_bias is None else db


_attention_entropy.register_autograd(_entropy_backward, setup_context=_keep_for_entropy)


def _keep_for_attention(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.order, ctx.scale, ctx.num_prefix, _, key_bias = inputs
    ctx.save_for_backward(q, k, v, key_bias)
    ctx.set_materialize_grads(False)  # None for the result that nothing depends on


def _attend_backward(ctx: Any, grad_output: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, key_bias = ctx.saved_tensors
    if grad_output is None and grad_entropy is None:
        return (None,) * 8
    dq, dk, dv, db = _attention_backward(
        grad_output, grad_entropy, q, k, v, ctx.order, ctx.scale, ctx.num_prefix, key_bias
    )
    return dq, dk, dv, None, None, None, None, None if key_bias is None else db


_attend_with_entropy.register_autograd(_attend_backward, setup_context=_keep_for_attention)

register_when_counted()
