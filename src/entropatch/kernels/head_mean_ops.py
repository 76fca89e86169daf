"""The statistics of `head_mean` as operators that torch.compile, torch.export and FLOP counters see.

The plain backend computes them from the whole matrix, by PyTorch's own operators; the others block by block, "triton"
the column norms by a program of its own. Scores need no gradients, and these operators have none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from entropatch.entropy import finite_bias, without_autocast, working_dtype
from entropatch.kernels import head_mean
from entropatch.kernels.registry import named


def column_norms(
    q: Tensor, k: Tensor, power: float, scale: float, num_prefix: int, backend: str, key_bias: Tensor | None = None
) -> Tensor:
    """(Σ_i Ā_ij^p)^(1/p) of each patch key j over all queries i: q and k (B, H, N, d) -> (B, N - num_prefix)."""
    if key_bias is not None:
        key_bias = finite_bias(key_bias, working_dtype(q))
    if named(backend).plain:
        return head_mean.column_norms(q, k, power, scale, num_prefix, key_bias, whole=True)
    return _column_norms(q, k, power, scale, num_prefix, backend, key_bias)


def row_entropies(
    q: Tensor, k: Tensor, scale: float, num_prefix: int, backend: str, key_bias: Tensor | None = None
) -> Tensor:
    """-Σ_j Ā_ij log Ā_ij of each patch query i over the patch keys j, in nats: (B, H, N, d) -> (B, N - num_prefix)."""
    if key_bias is not None:
        key_bias = finite_bias(key_bias, working_dtype(q))
    if named(backend).plain:
        return head_mean.row_entropies(q, k, scale, num_prefix, key_bias, whole=True)
    return _row_entropies(q, k, scale, num_prefix, key_bias)


@torch.library.custom_op("entropatch::column_norms", mutates_args=())
def _column_norms(
    q: Tensor, k: Tensor, power: float, scale: float, num_prefix: int, backend: str, key_bias: Tensor | None = None
) -> Tensor:
    with without_autocast(q):
        return (named(backend).column_norms or head_mean.column_norms)(q, k, power, scale, num_prefix, key_bias)


@_column_norms.register_fake
def _(
    q: Tensor, k: Tensor, power: float, scale: float, num_prefix: int, backend: str, key_bias: Tensor | None = None
) -> Tensor:
    return _patch_values(q, num_prefix)


@torch.library.custom_op("entropatch::row_entropies", mutates_args=())
def _row_entropies(q: Tensor, k: Tensor, scale: float, num_prefix: int, key_bias: Tensor | None = None) -> Tensor:
    with without_autocast(q):
        return head_mean.row_entropies(q, k, scale, num_prefix, key_bias)


@_row_entropies.register_fake
def _(q: Tensor, k: Tensor, scale: float, num_prefix: int, key_bias: Tensor | None = None) -> Tensor:
    return _patch_values(q, num_prefix)


def _patch_values(q: Tensor, num_prefix: int) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2] - num_prefix, dtype=working_dtype(q))
