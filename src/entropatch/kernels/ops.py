"""The backends as operators that torch.compile, torch.export and FLOP counters see: `torch.ops.entropatch`."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from entropatch.entropy import finite_bias, representable, working_dtype
from entropatch.kernels import materialised, streaming
from entropatch.kernels.flop_formulas import register_when_counted


def attention_entropy(
    q: Tensor, k: Tensor, order: float, scale: float, backend: str, key_bias: Tensor | None = None
) -> Tensor:
    """Entropy of each query's attention over the keys: (B, H, n, d), (B, H, m, d) -> (B, H, n), in nats.

    `key_bias` (B, m), finite or -inf, is added to every logit of its key.
    """
    if key_bias is not None:
        key_bias = finite_bias(key_bias, working_dtype(q))
    if backend == "reference":
        return materialised.attention_entropy(q, k, order, scale, key_bias)
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
    if backend == "reference":
        return materialised.attend_with_entropy(q, k, v, order, scale, num_prefix, key_bias)
    return _attend_with_entropy(q, k, v, representable(order), scale, num_prefix, backend, key_bias)


def _module(backend: str) -> ModuleType:
    if backend == "triton":
        from entropatch.kernels import triton_attention

        return triton_attention
    return streaming


@torch.library.custom_op("entropatch::attention_entropy", mutates_args=())
def _attention_entropy(
    q: Tensor, k: Tensor, order: float, scale: float, backend: str, key_bias: Tensor | None = None
) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        return _module(backend).attention_entropy(q, k, order, scale, key_bias)


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
    with torch.autocast(q.device.type, enabled=False):
        return _module(backend).attend_with_entropy(q, k, v, order, scale, num_prefix, key_bias)


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


register_when_counted()
