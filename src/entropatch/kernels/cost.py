"""Multiply-adds of attention and its entropy, from shapes: stated once, for every counter."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

Shape = Sequence[int]


def logits_macs(q: Shape, k: Shape) -> int:
    """q·kᵀ of (…, n, d), (…, m, d): B·H·n·m·d. What is done with the logits is elementwise and free."""
    return prod(q[:-1]) * k[-2] * q[-1]


def attention_macs(q: Shape, k: Shape, v: Shape) -> int:
    """q·kᵀ and p·v of (…, n, d), (…, m, d), (…, m, e): B·H·n·m·(d + e). Entropy from the same logits costs nothing."""
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def gradient_macs(q: Shape, k: Shape, v: Shape | None) -> int:
    """The logits again and the gradients of q and k; with `v`, of which the output was made, also those of v and p."""
    return 3 * logits_macs(q, k) + (0 if v is None else 2 * prod(q[:-1]) * k[-2] * v[-1])
