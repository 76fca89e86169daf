"""Slow float64 twins of the methods of others, as loops over one image; nothing here uses entropatch.

Shapes are those of one image: q, k, v (heads, tokens, d), x (tokens, width); prefix tokens come first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import reference
import torch
from torch import Tensor

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


# --- norms of columns, entropy of the mean head, norms of values -------------------------------------------------


def mean_head(q: np.ndarray, k: np.ndarray, scale: float, bias: Row | None = None) -> list[list[float]]:
    """The attention of all tokens on all, mean over heads."""
    heads = reference.full_attention(q, k, scale, bias)
    n = len(heads[0])
    return [[math.fsum(head[i][j] for head in heads) / len(heads) for j in range(n)] for i in range(n)]


def column_norm(
    q: np.ndarray, k: np.ndarray, scale: float, num_prefix: int, power: float, bias: Row | None = None
) -> list[float]:
    """Col-Ln: (Σ_i Ā_ij^p)^(1/p) of each patch j over all tokens i."""
    rows = mean_head(q, k, scale, bias)
    columns = [[row[j] for row in rows] for j in range(num_prefix, len(rows))]
    norms = []
    for column in columns:
        top = max(column)  # drawn out, since a high power of a small number is none
        powers = math.fsum((x / top) ** power for x in column) if top > 0 and power < math.inf else 1.0
        norms.append(top * powers ** (1 / power))
    return norms


def mean_head_entropy(
    q: np.ndarray, k: np.ndarray, scale: float, num_prefix: int, bias: Row | None = None
) -> list[float]:
    """AttEntropy: -Σ_j Ā_ij log Ā_ij of each patch i over the patches j, not renormalised."""
    patches = [row[num_prefix:] for row in mean_head(q, k, scale, bias)[num_prefix:]]
    return [-math.fsum(x * math.log(x) for x in row if x > 0) for row in patches]


def value_norm(
    q: np.ndarray, k: np.ndarray, scale: float, num_prefix: int, v: np.ndarray, weight: np.ndarray
) -> list[float]:
    """Kobayashi: the mean over heads of class attention times ‖v W_O^h‖; `weight` is that of an nn.Linear."""
    scores = [0.0] * (v.shape[1] - num_prefix)
    width = v.shape[2]
    for h, row in enumerate(reference.class_attention(q, k, scale, num_prefix)):
        part = weight[:, h * width : (h + 1) * width]
        for j, share in enumerate(row):
            value = v[h, num_prefix + j].tolist()
            image = [math.fsum(float(a) * b for a, b in zip(line, value, strict=True)) for line in part]
            scores[j] += share * math.sqrt(math.fsum(x * x for x in image)) / len(v)
    return scores


# --- ATS (Fayyaz et al. 2022) ------------------------------------------------------------------------------------


def ats_scores(q: np.ndarray, k: np.ndarray, scale: float, num_prefix: int, v: np.ndarray) -> list[float]:
    """(Σ_h A^h[0, j]) · ‖concat_h V_j‖ over its sum."""
    rows = reference.class_attention(q, k, scale, num_prefix)
    scores = [
        math.fsum(row[j] for row in rows) * math.sqrt(math.fsum(float(x) ** 2 for x in v[:, num_prefix + j].ravel()))
        for j in range(v.shape[1] - num_prefix)
    ]
    return [score / math.fsum(scores) for score in scores]


def ats_sampled(scores: Row, samples: int) -> list[int]:
    """Places of the sampled patches, ascending: sorted, summed up, min-max, and the nearest to each grid point."""
    order = sorted(range(len(scores)), key=lambda j: scores[j])
    sums = [math.fsum(scores[j] for j in order[: i + 1]) for i in range(len(order))]
    if sums[-1] == sums[0]:
        return sorted(order)
    unit = [(s - sums[0]) / (sums[-1] - sums[0]) for s in sums]
    first = min(u for u in unit if u > 0)
    points = [first + (1 - first) * i / (samples - 1) for i in range(samples)] if samples > 1 else [first]
    return sorted({order[min(range(len(unit)), key=lambda i: abs(unit[i] - point))] for point in points})


# --- whole models, one image at a time ---------------------------------------------------------------------------


def softmaxed(block: Any, x: Tensor) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """(queries, keys, values), each (heads, tokens, d), of a plain timm block on one image (1, tokens, width)."""
    attention, y = block.attn, block.norm1(x)
    q, k, v = attention.qkv(y)[0].reshape(x.shape[1], 3, attention.num_heads, -1).permute(1, 2, 0, 3)
    return attention.q_norm(q).numpy(), attention.k_norm(k).numpy(), v


def attended(block: Any, q: np.ndarray, k: np.ndarray, v: Tensor) -> Tensor:
    """What the attention adds to the tokens, (1, tokens, width)."""
    weights = torch.tensor(reference.full_attention(q, k, block.attn.scale), dtype=v.dtype)
    return block.ls1(block.attn.proj((weights @ v).transpose(0, 1).flatten(1)[None]))


def embedded(model: Any, image: Tensor) -> Tensor:
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))


def slow_pass(
    model: Any, image: Tensor, choose: Callable[[int, np.ndarray, np.ndarray, np.ndarray, list[int]], list[int] | None]
) -> tuple[Tensor, list[list[int]]]:
    """A float64 timm model of plain blocks on one image, which drops in the middle of its blocks.

    `choose(block, q, k, v, present)` is asked in every block, with the original numbers of the patches present, and
    says which places among them stay; None for all. Returns the output, and what stayed wherever it chose.
    """
    prefix, stages = model.num_prefix_tokens, []
    with torch.no_grad():
        x = embedded(model, image)
        present = list(range(x.shape[1] - prefix))
        for number, block in enumerate(model.blocks):
            q, k, v = softmaxed(block, x)
            x = x + attended(block, q, k, v)
            places = choose(number, q, k, v.numpy(), present)
            if places is not None:
                x = x[:, [*range(prefix), *(prefix + place for place in places)]]
                present = [present[place] for place in places]
                stages.append(present)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return model.forward_head(model.norm(x)), stages


# --- Evo-ViT (Xu et al. 2022) ------------------------------------------------------------------------------------


def evo_pass(
    model: Any, image: Tensor, blocks: Sequence[int], rate: float, share: float, begin: int, representative: bool
) -> tuple[Tensor, list[list[int]]]:
    """A float64 timm model of plain blocks on one image: the best floor(rate · n) patches run each of `blocks`.

    Returns the output and the patches that ran each of them.
    """
    prefix = model.num_prefix_tokens
    stages: list[list[int]] = []
    g: dict[int, float] = {}
    with torch.no_grad():
        x = embedded(model, image)
        n = x.shape[1] - prefix
        for number, block in enumerate(model.blocks):
            chosen, extra, waiting = list(range(n)), [], []
            if number in blocks:
                chosen = reference.kept_places([g[j] for j in range(n)], math.floor(rate * n))
                stages.append(chosen)
                waiting = [j for j in range(n) if j not in chosen]
                if representative:
                    total = math.fsum(g[j] for j in waiting)
                    extra = [torch.stack([g[j] / total * x[:, prefix + j] for j in waiting]).sum(0)[:, None]]
            rows = [*range(prefix), *(prefix + j for j in chosen)]
            entering = torch.cat([x[:, rows], *extra], 1)
            q, k, v = softmaxed(block, entering)
            y = entering + attended(block, q, k, v)
            y = y + block.ls2(block.mlp(block.norm2(y)))
            heads = reference.class_attention(q, k, block.attn.scale, prefix)
            for place, j in enumerate(chosen):
                new = math.fsum(head[place] for head in heads)
                g[j] = new if number < begin else (1 - share) * g[j] + share * new
            if number in blocks and representative:
                for j in waiting:
                    x[:, prefix + j] += y[:, -1] - entering[:, -1]
            x[:, rows] = y[:, : len(rows)]
        return model.forward_head(model.norm(x)), stages
