"""The "triton" backend: one flash-attention pass over the keys on CUDA. Its programs are in `triton_attention` and
`triton_columns`.

Those files alone import Triton, when the backend first runs.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from entropatch.kernels.backend import Backend
from entropatch.kernels.interpreter import interpreting

# Asked once, since torch.compile cannot trace the question.
TRITON_INSTALLED = find_spec("triton") is not None


def why_not(q: Tensor) -> str | None:
    """Why Triton cannot run for these queries; None where it can."""
    if not TRITON_INSTALLED:
        return "the package triton is not installed"
    if not q.is_cuda and not interpreting():
        return f"it needs a CUDA tensor, but the queries are on {q.device.type}"
    if q.dtype == torch.float64:
        return "it computes in float32, and the queries are float64"
    if q.shape[-1] > 128:
        return f"it needs a head width of at most 128, but got {q.shape[-1]}"
    return None


def attention_entropy(q: Tensor, k: Tensor, order: float, scale: float, key_bias: Tensor | None = None) -> Tensor:
    """Entropy of each query's attention over the keys: (B, H, n, d), (B, H, m, d) -> (B, H, n), in nats, float32."""
    from entropatch.kernels.triton_attention import launch

    return launch(q, k, None, order, scale, 0, key_bias)[1]


def attend_with_entropy(
    q: Tensor, k: Tensor, v: Tensor, order: float, scale: float, num_prefix: int, key_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention output (B, H, N, d) over all tokens, and the entropy (B, H, N - num_prefix) of the patches."""
    from entropatch.kernels.triton_attention import launch

    return launch(q, k, v, order, scale, num_prefix, key_bias)


def column_norms(
    q: Tensor, k: Tensor, power: float, scale: float, num_prefix: int, key_bias: Tensor | None = None
) -> Tensor:
    """(Σ_i Ā_ij^p)^(1/p) of the mean head for each patch key: (B, H, N, d) -> (B, N - num_prefix), float32."""
    from entropatch.kernels.triton_columns import launch

    return launch(q, k, power, scale, num_prefix, key_bias)


BACKEND = Backend("triton", why_not, attention_entropy, attend_with_entropy, column_norms)
