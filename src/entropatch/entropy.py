"""Shannon and Rényi entropy of attention: the maths, in nats.

Aizawa & Igaue 2026 ("Rényi Attention Entropy for Patch Pruning", arXiv 2604.03803), Definitions 1 to 3:

    H_1(p)     = -Σ_j p_j log p_j                      Shannon, the limit order → 1
    H_α(p)     = log(Σ_j p_j^α) / (1 - α)              Rényi, 0 < α < ∞, α ≠ 1
    H_∞(p)     = -log max_j p_j                        min-entropy

Everything is computed in float32, or in float64 for float64 input. These functions are the readable reference;
`entropatch.kernels` computes the entropy of attention from queries and keys with them, and holds faster twins.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from numbers import Real
from typing import Any

import torch
from torch import Tensor

# Inside this distance from 1 the log1p/expm1 form is used; outside it, the two log-sum-exps. Both are accurate at
# the border: the first needs |order - 1| small enough that p^(order - 1) of a representable p does not overflow, the
# second divides its rounding error by |1 - order|.
NEAR_ONE = 0.25

# The same for gradients, whose rounding error of w - p is small beside p itself: dividing it by 1/16 spoils nothing.
NEAR_ONE_GRADIENT = 1 / 16

# Orders beyond these would round to 0 or ∞ in float32, and 0 · -inf or ∞ · 0 be NaN. The entropy of any outcomes that
# float64 can tell apart has long reached its limit there.
SMALLEST_ORDER, LARGEST_ORDER = 1e-30, 1e30

# What a key bias of -inf counts as: a key without weight beside any other, and no NaN in rows that have nothing else.
NO_KEY = -1e30


def check_order(order: float) -> float:
    """Return `order` as a float, or raise ValueError (order must lie in (0, ∞]) / TypeError (not a number)."""
    if isinstance(order, bool) or not isinstance(order, (int, float, Real)):
        raise TypeError(f"order must be a real number in (0, inf], but got {order!r} of type {type(order).__name__}.")
    try:
        value = float(order)
    except OverflowError:
        raise ValueError("order must be a number in (0, inf], but got an integer beyond any float.") from None
    if value != value:  # NaN; math.isnan and math.isinf do not take the symbolic floats of torch.compile
        raise ValueError("order must be a number in (0, inf], but got NaN; use 1.0 for Shannon entropy.")
    if value == 0:
        raise ValueError(
            "order must be greater than 0, but got 0: the entropy of order 0 counts the non-zero probabilities, which "
            "a softmax never has any of, so it is log n for every patch and ranks nothing. Use a small positive order."
        )
    if value < 0:
        raise ValueError(f"order must be greater than 0, but got {order!r}: Rényi entropy is defined for order > 0.")
    return value


def check_probabilities(probs: Tensor, dim: int) -> None:
    """Raise ValueError or TypeError unless `probs` is a floating tensor, non-negative, summing to one along `dim`."""
    if not isinstance(probs, Tensor):
        raise TypeError(f"probs must be a torch.Tensor, but got {type(probs).__name__}; use torch.as_tensor(probs).")
    if not probs.is_floating_point():
        raise TypeError(f"probs must be a floating-point tensor, but got {probs.dtype}; convert it with probs.float().")
    if probs.shape[dim] == 0:
        raise ValueError(f"probs must hold at least one probability along dim={dim}, but got {tuple(probs.shape)}.")
    if probs.numel() == 0 or torch.compiler.is_compiling():
        return
    wide = probs.detach().to(working_dtype(probs))
    if not bool((wide >= 0).all()):
        raise ValueError(f"probs must be non-negative, but the smallest value is {wide.min().item():g} (or NaN).")
    # Rounding n probabilities to the input's precision moves their sum by at most about eps per unit of mass.
    tolerance = max(1e-3, 4 * torch.finfo(probs.dtype).eps)
    error = (wide.sum(dim) - 1).abs().max().item()
    if not error <= tolerance:
        raise ValueError(
            f"probs must sum to 1 along dim={dim}, but a sum is off by {error:g} (allowed {tolerance:g}); "
            "apply softmax first, or divide by the sum."
        )


def representable(order: float) -> float:
    """`order`, moved into the range in which float32 arithmetic with it stays finite; ∞ stays ∞."""
    return order if order == math.inf else min(max(order, SMALLEST_ORDER), LARGEST_ORDER)


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype entropies are computed in: float64 for float64 input, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def renyi_entropy(probs: Tensor, order: float, dim: int = -1) -> Tensor:
    """Rényi entropy of probability vectors, in nats.

    H_α(p) = log(Σ_j p_j^α) / (1 - α), with its limits H_1 = -Σ p log p (Shannon) and H_∞ = -log max p.
    0 ≤ H_α ≤ log n; H_α never increases with α. Definitions 2 and 3 of arXiv 2604.03803.

    Args:
        probs: probabilities, any shape, floating point; sums to one along `dim` up to the rounding of its dtype, and
            is divided by that sum, so that the entropies of rounded probabilities keep their laws.
        order: α in (0, ∞]; `math.inf` gives the min-entropy. Orders next to 1 lose no precision.
        dim: the dimension that sums to one.

    Returns:
        Entropies in nats, shaped as `probs` without `dim`; float32, or float64 for float64 input. Differentiable; a
        probability of exactly 0 has no gradient, as a softmax that gave it passes none on.

    Raises:
        ValueError: order ≤ 0 or NaN; negative probabilities; sums that are not one; no probabilities.
        TypeError: `probs` is not a floating-point tensor; `order` is not a number.
    """
    order = check_order(order)
    check_probabilities(probs, dim)
    wide = probs.to(working_dtype(probs))
    # At 0 the logarithm's slope is ∞, and times 0 no number: there it is a constant.
    logs = torch.where(wide == 0, -math.inf, wide.masked_fill(wide == 0, 1).log())
    # The sum is a constant to the gradient, which therefore is that of the formula above.
    return entropy_from_log_probs(logs - wide.detach().sum(dim, keepdim=True).log(), order, dim)


def entropy_from_logits(logits: Tensor, order: float, dim: int = -1) -> Tensor:
    """Rényi entropy of softmax(logits) along `dim`, in nats, without leaving log space.

    With LSE = log-sum-exp, H_α = (LSE(α x) - α LSE(x)) / (1 - α) and H_1 = LSE(x) - Σ p x.
    Finite for logits of any finite size. Shapes, dtypes and errors as in `renyi_entropy`.
    """
    order = check_order(order)
    return entropy_from_log_probs(torch.log_softmax(logits.to(working_dtype(logits)), dim), order, dim)


def entropy_from_log_probs(log_probs: Tensor, order: float, dim: int = -1) -> Tensor:
    """Rényi entropy of exp(log_probs) along `dim`, in nats; -inf stands for probability zero. `order` is checked."""
    if order == math.inf:
        entropy = -log_probs.amax(dim)
    elif order == 1.0:
        entropy = -_expected(log_probs, log_probs, dim)
    elif abs(order - 1) < NEAR_ONE:
        # H = -log(1 + Σ p (p^t - 1)) / t with t = order - 1: every term has the same sign, so nothing cancels.
        t = order - 1
        entropy = -torch.log1p(_expected(log_probs, torch.expm1(t * log_probs), dim)) / t
    else:
        # Σ p^α may exceed float range for log_probs far below zero only downwards, which log-sum-exp handles.
        order = representable(order)
        entropy = torch.logsumexp(order * log_probs, dim) / (1 - order)
    return entropy.clamp_min(0)


def entropy_gradient(logits: Tensor, order: float) -> Tensor:
    """∂H_α/∂x of H_α(softmax(x)) along the last dimension, shaped as the finite `logits`, in their dtype.

    With w = p^α / Σ p^α it is α (w - p) / (1 - α). Order 1: -p (log p + H); order ∞: p less 1 at the largest logit,
    shared evenly among several of one size.
    """
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp()
    if order == math.inf:
        largest = (logits == logits.amax(-1, keepdim=True)).to(p.dtype)
        return p - largest / largest.sum(-1, keepdim=True)
    if order == 1.0:
        return p.neg() * (log_p - (p * log_p).sum(-1, keepdim=True))
    if abs(order - 1) < NEAR_ONE_GRADIENT:
        # w / p = (1 + u) / (1 + E) with u = p^t - 1, t = order - 1 and E = Σ p u: nothing of size 1 is subtracted.
        t = order - 1
        u = torch.expm1(t * log_p).masked_fill(p == 0, 0)
        mean = (p * u).sum(-1, keepdim=True)
        return p * (u - mean) * (-order / (t * (1 + mean)))
    order = representable(order)
    w = torch.softmax(order * (logits - logits.amax(-1, keepdim=True)), -1)
    return (w - p) * (order / (1 - order))


def _expected(log_probs: Tensor, values: Tensor, dim: int) -> Tensor:
    """Σ_j p_j values_j, where p = 0 contributes nothing whatever the value there (x log x → 0)."""
    probs = log_probs.exp()
    return (probs * values.masked_fill(probs == 0, 0)).sum(dim)


def finite_bias(key_bias: Tensor, dtype: torch.dtype) -> Tensor:
    """`key_bias` in `dtype`, with `NO_KEY` in place of -inf, or the lowest number where `dtype` does not reach it."""
    return key_bias.to(dtype).clamp_min(max(NO_KEY, torch.finfo(dtype).min))


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast turned off where the tensor is; on "meta", where PyTorch knows no autocast, there is nothing to do."""
    kind = tensor.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def attention_logits(q: Tensor, k: Tensor, scale: float, key_bias: Tensor | None = None) -> Tensor:
    """scale · q·kᵀ in float32 or wider, also under autocast: (…, n, d), (…, m, d) -> (…, n, m).

    `key_bias`, (batch, m) for q and k of (batch, heads, …), is added to every logit of its key; -inf counts as -1e30.
    """
    dtype = working_dtype(q)
    with without_autocast(q):
        logits = (q.to(dtype) * scale) @ k.to(dtype).transpose(-2, -1)
        return logits if key_bias is None else logits + finite_bias(key_bias, dtype)[:, None, None]
