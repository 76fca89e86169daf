"""Σ_j w_j (w_j^t - 1), from which the entropy of an order next to 1 comes without cancellation, at an ordinary price.

With w = 2^x ≤ 1, Z = Σ w and t = order - 1:    H = log Z - log(1 + Σ w (w^t - 1) / Z) / t.

PyTorch's expm1 takes four times as long as its exp2 on a CPU. In float32, therefore:

    |t| ≥ 1/64   2^{tx} - 1 as it stands: exp2 rounds by 6e-8 at 1, so H is off by at most 6e-8 / |t|
    below        K terms of the series of e^z - 1, z = tx log 2. What they leave out is largest where m keys stand about
                 b = log m below the largest logit, since those further off weigh nothing: (tb)^{K+1} / ((K+1)! t) in H,
                 below 2e-7 for 4096 keys and below 1e-6 for 65536
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LN_2 = math.log(2)
# Distances from order 1 below which the series is used, and below which three of its terms suffice.
SERIES, SHORT_SERIES = 1 / 64, 1e-3


def needs_spare(order: float, dtype: torch.dtype) -> bool:
    """Whether `power_gap` needs a third matrix for this order."""
    return dtype != torch.float64 and 0 < abs(order - 1) < SERIES


def power_gap(x: Tensor, weights: Tensor, t: float, spare: Tensor | None) -> Tensor:
    """Σ_j w_j (w_j^t - 1) along the last dimension, for w = 2^x; overwrites `x`, and `spare` of its shape if needed."""
    # Where weights are zero anyway: for t < 0 their powers would overflow, and ∞ · 0 be NaN.
    x.clamp_min_(-1100 if x.dtype == torch.float64 else -150)
    if x.dtype == torch.float64:
        return x.mul_(t * LN_2).expm1_().mul_(weights).sum(-1)
    if abs(t) >= SERIES:
        return x.mul_(t).exp2_().sub_(1).mul_(weights).sum(-1)
    # x (1 + z/2 (1 + z/3 (…))) with z = cx, from the inside.
    c, terms = t * LN_2, 3 if abs(t) < SHORT_SERIES else 5
    series = torch.addcmul(x, x, x, value=c / terms, out=spare)
    for k in range(terms - 1, 1, -1):
        torch.addcmul(x, x, series, value=c / k, out=series)
    return series.mul_(weights).sum(-1) * c
