"""Slow float64 twins of the methods of others, as loops over one image; nothing here uses entropatch.

Shapes are those of one image: q, k, v (heads, tokens, d), x (tokens, width); prefix tokens come first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import reference

Row = Sequence[float]


# --- head diversity (Igaue & Aizawa 2025) ------------------------------------------------------------------------


def middle(values: Row) -> float:
    """The median: the mean of the two in the middle where there are an even number."""
    ranked = sorted(values)
    half = len(ranked) // 2
    return ranked[half] if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2


def head_diversity(q: np.ndarray, k: np.ndarray, scale: float, num_prefix: int, measure: str) -> list[float]:
    """Variance, or median absolute deviation, over the heads of the class token's attention on each patch."""
    scores = []
    for values in zip(*reference.class_attention(q, k, scale, num_prefix), strict=True):
        if measure == "variance":
            mean = math.fsum(values) / len(values)
            scores.append(math.fsum((value - mean) ** 2 for value in values) / len(values))
        else:
            scores.append(middle([abs(value - middle(values)) for value in values]))
    return scores
