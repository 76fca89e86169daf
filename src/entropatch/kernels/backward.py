"""Gradients of attention output and entropy: blocks of query rows are formed again, so no n×n matrix is kept.

For a block of rows, with x the logits, p = softmax(x) over the patches and P over all tokens:

    ∂L/∂x = g · ∂H/∂x + P (dP - Σ P dP)        dP = ∂L/∂out · vᵀ; the first term on the patches' columns and rows alone
    ∂L/∂q = s · ∂L/∂x · k      ∂L/∂k = s · (∂L/∂x)ᵀ · q      ∂L/∂v = Pᵀ · ∂L/∂out      ∂L/∂b = Σ_rows,heads ∂L/∂x

Plain ATen, for the backends that have no gradient of their own, on any device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from entropatch.entropy import entropy_gradient, working_dtype

# Logits of one block, about six of which are held at once: on a CPU, and elsewhere, where small blocks do not fill the
# device.
CPU_LOGITS, DEVICE_LOGITS = 2 * 1024 * 1024, 16 * 1024 * 1024


def backward(
    grad_output: Tensor | None,
    grad_entropy: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    order: float,
    scale: float,
    num_prefix: int,
    key_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of q, k, v and key_bias, from those of the output (B, H, N, d) and the entropy (B, H, N - num_prefix).

    Args:
        grad_output, grad_entropy: None where nothing depends on them; the first also where there is no `v`.
        q, k, v, order, scale, num_prefix, key_bias: what the forward pass was given.

    Returns:
        In the dtypes of q, k, v and key_bias; None for those that were not given.
    """
    (batch, heads, n, _), m, dtype = q.shape, k.shape[2], working_dtype(q)

    def flat(x: Tensor) -> Tensor:
        return x.to(dtype).flatten(0, 1)

    bias = None if key_bias is None else flat(key_bias[:, None].expand(-1, heads, -1))
    inputs = _Inputs(flat(q), flat(k), None if v is None else flat(v), bias)
    grads = inputs.zeros()
    given = [None if x is None else flat(x) for x in (grad_output, grad_entropy)]
    logits = CPU_LOGITS if q.device.type == "cpu" else DEVICE_LOGITS
    together = max(1, logits // max(n * m, 1))
    rows = max(1, min(n, logits // max(m, 1)))
    for head in range(0, batch * heads, together):
        group = slice(head, head + together)
        some, sums = inputs.of(group), grads.of(group)
        from_output, from_entropy = (None if x is None else x[group] for x in given)
        for row in range(0, n, rows):
            block = slice(row, min(row + rows, n))
            _add_block(some, sums, from_output, from_entropy, block, order, scale, num_prefix)
    return (
        grads.q.view(q.shape).to(q.dtype),
        grads.k.view(k.shape).to(k.dtype),
        None if grads.v is None or v is None else grads.v.view(v.shape).to(v.dtype),
        None if grads.bias is None else grads.bias.view(batch, heads, m).sum(1),
    )


class _Inputs(NamedTuple):
    """What is differentiated by, or its gradients, for some heads: (h, n, d), (h, m, d), (h, m, e), (h, m)."""

    q: Tensor
    k: Tensor
    v: Tensor | None
    bias: Tensor | None

    def of(self, heads: slice) -> _Inputs:
        v, bias = (None if x is None else x[heads] for x in (self.v, self.bias))
        return _Inputs(self.q[heads], self.k[heads], v, bias)

    def zeros(self) -> _Inputs:
        v, bias = (None if x is None else x.new_zeros(x.shape) for x in (self.v, self.bias))
        return _Inputs(self.q.new_zeros(self.q.shape), self.k.new_zeros(self.k.shape), v, bias)


def _add_block(
    inputs: _Inputs,
    grads: _Inputs,
    grad_output: Tensor | None,
    grad_entropy: Tensor | None,
    rows: slice,
    order: float,
    scale: float,
    num_prefix: int,
) -> None:
    """Add to the gradients what some rows of some heads give."""
    q, k, v = inputs.q[:, rows], inputs.k, inputs.v
    x = torch.bmm(q, k.mT).mul_(scale)
    if inputs.bias is not None:
        x += inputs.bias[:, None]
    dx = torch.zeros_like(x)
    if grad_entropy is not None and rows.stop > num_prefix:
        first = max(num_prefix - rows.start, 0)  # rows of prefix tokens, which have no entropy
        patches = slice(rows.start + first - num_prefix, rows.stop - num_prefix)
        slope = entropy_gradient(x[:, first:, num_prefix:], order)
        torch.mul(slope, grad_entropy[:, patches, None], out=dx[:, first:, num_prefix:])
    if grad_output is not None and v is not None and grads.v is not None:
        attention, grad_output = x.softmax(-1), grad_output[:, rows]
        grads.v.baddbmm_(attention.mT, grad_output)
        da = torch.bmm(grad_output, v.mT).mul_(attention)
        dx += da.sub_(attention.mul_(da.sum(-1, keepdim=True)))
    torch.bmm(dx, k, out=grads.q[:, rows]).mul_(scale)
    grads.k.baddbmm_(dx.mT, q, alpha=scale)
    if grads.bias is not None:
        grads.bias.add_(dx.sum(1))
