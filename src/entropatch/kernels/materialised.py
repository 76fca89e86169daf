"""The "reference" backend: the whole attention matrix, formed once and read by both results. Readable, any device."""

from __future__ import annotations

import torch
from torch import Tensor

from entropatch.entropy import entropy_from_logits, working_dtype


def attention_entropy(q: Tensor, k: Tensor, order: float, scale: float) -> Tensor:
    """Entropy of each query's attention over the keys: (…, n, d), (…, m, d) -> (…, n), in nats."""
    return entropy_from_logits(attention_logits(q, k, scale), order)


def attend_with_entropy(
    q: Tensor, k: Tensor, v: Tensor, order: float, scale: float, num_prefix: int
) -> tuple[Tensor, Tensor]:
    """Attention output (…, N, d) over all tokens, and the entropy (…, N - num_prefix) of the patches over the patches."""
    logits = attention_logits(q, k, scale)
    entropy = entropy_from_logits(logits[..., num_prefix:, num_prefix:], order)
    return (logits.softmax(-1) @ v.to(logits.dtype)).to(v.dtype), entropy


def attention_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """scale · q·kᵀ in float32 or wider: (…, n, m)."""
    dtype = working_dtype(q)
    # Autocast would turn the product back into half precision.
    with torch.autocast(q.device.type, enabled=False):
        return (q.to(dtype) * scale) @ k.to(dtype).transpose(-2, -1)
