"""The "reference" backend: the whole attention matrix, formed once and read by both results. Readable, any device."""

from __future__ import annotations

from torch import Tensor

from entropatch.entropy import attention_logits, entropy_from_logits
from entropatch.kernels.backend import Backend


def attention_entropy(q: Tensor, k: Tensor, order: float, scale: float, key_bias: Tensor | None = None) -> Tensor:
    """Entropy of each query's attention over the keys: (…, n, d), (…, m, d) -> (…, n), in nats."""
    return entropy_from_logits(attention_logits(q, k, scale, key_bias), order)


def attend_with_entropy(
    q: Tensor, k: Tensor, v: Tensor, order: float, scale: float, num_prefix: int, key_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention output (…, N, d) over all tokens, and the entropy (…, N - num_prefix) of the patches."""
    logits = attention_logits(q, k, scale, key_bias)
    entropy = entropy_from_logits(logits[..., num_prefix:, num_prefix:], order)
    return (logits.softmax(-1) @ v.to(logits.dtype)).to(v.dtype), entropy


BACKEND = Backend("reference", lambda q: None, attention_entropy, attend_with_entropy, plain=True)
