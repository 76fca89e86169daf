"""Slow twins of entropatch in float64: plain loops over one image, written from the definitions, none of its code.

Exponentials, logarithms and powers are taken with 60 decimal digits where cancellation or overflow would spoil float64,
so a twin is right for every order, next to 1 too, and for logits of any size.

Shapes are those of one image: q, k, v (heads, tokens, d), x (tokens, width); prefix tokens come first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from fractions import Fraction

import numpy as np

Row = Sequence[float]
FUSED = -1  # stands for a fused token in lists of original patch numbers

_DIGITS = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN)


# --- entropy of one row ------------------------------------------------------------------------------------------


def renyi_entropy(probs: Row, order: float) -> float:
    """H_α(p) in nats, by its definition; p is divided by its sum first."""
    with localcontext(_DIGITS):
        weights = [Decimal(float(p)) for p in probs if p > 0]
        total = sum(weights)
        return float(_entropy([(w / total).ln() for w in weights], order))


def entropy_of_logits(logits: Row, order: float) -> float:
    """H_α(softmax(logits)) in nats; no logit is too large or too small. -inf takes a key away; all -inf is even."""
    with localcontext(_DIGITS):
        values = [Decimal(float(x)) for x in logits if x != -math.inf] or [Decimal(0)] * len(logits)
        log_total = sum((x - max(values)).exp() for x in values).ln() + max(values)
        return float(_entropy([x - log_total for x in values], order))


def _entropy(log_probs: list[Decimal], order: float) -> Decimal:
    top = max(log_probs)
    if order == math.inf:
        return -top
    if order == 1:
        return -sum((x.exp() * x for x in log_probs), Decimal(0))
    alpha = Decimal(float(order))
    # Σ p^α with max p^α drawn out. 60 digits leave 40 after the 16 that dividing by 1 - α costs at worst.
    log_power_sum = alpha * top + sum((alpha * (x - top)).exp() for x in log_probs).ln()
    return log_power_sum / (1 - alpha)


def entropy_gradient(logits: Row, order: float) -> list[float]:
    """∂H_α/∂x_j of H_α(softmax(x)) by its definition: the slope of log Σ e^{αx} / (1 - α) - α/(1 - α) log Σ e^x."""
    with localcontext(_DIGITS):
        x = [Decimal(float(value)) for value in logits]
        p = _softmax(x)
        if order == math.inf:  # where one logit is the largest
            return [float(pj - (1 if xj == max(x) else 0)) for pj, xj in zip(p, x, strict=True)]
        if order == 1:
            entropy = -sum((pj * pj.ln() for pj in p), Decimal(0))
            return [float(-pj * (pj.ln() + entropy)) for pj in p]
        alpha = Decimal(float(order))
        w = _softmax([alpha * value for value in x])
        return [float(alpha * (wj - pj) / (1 - alpha)) for wj, pj in zip(w, p, strict=True)]


def _softmax(x: list[Decimal]) -> list[Decimal]:
    powers = [(value - max(x)).exp() for value in x]
    return [power / sum(powers) for power in powers]


def softmax(logits: Row) -> list[float]:
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    total = math.fsum(weights)
    return [w / total for w in weights]


# --- attention of one image --------------------------------------------------------------------------------------


def attention_logits(q: np.ndarray, k: np.ndarray, scale: float, key_bias: Row | None = None) -> list[list[float]]:
    """scale · q_i·k_j + bias_j of one head: (n, d), (m, d), m values -> n rows of m."""
    bias = [0.0] * len(k) if key_bias is None else [float(b) for b in key_bias]
    return [
        [
            scale * math.fsum(float(a) * float(b) for a, b in zip(qi, kj, strict=True)) + bj
            for kj, bj in zip(k, bias, strict=True)
        ]
        for qi in q
    ]


def attention_entropies(
    q: np.ndarray, k: np.ndarray, order: float, scale: float, key_bias: Row | None = None
) -> list[float]:
    """Entropy of each query's attention over the keys of one head: (n, d), (m, d) -> n values."""
    return [entropy_of_logits(row, order) for row in attention_logits(q, k, scale, key_bias)]


def patch_attention(q: np.ndarray, k: np.ndarray, scale: float, num_prefix: int) -> list[list[list[float]]]:
    """Definition 1: per head, each patch's attention over the patches, prefix tokens being neither query nor key."""
    return [
        [softmax(row) for row in attention_logits(qh[num_prefix:], kh[num_prefix:], scale)]
        for qh, kh in zip(q, k, strict=True)
    ]


def patch_entropies(
    q: np.ndarray, k: np.ndarray, order: float, scale: float, num_prefix: int, key_bias: Row | None = None
) -> list[list[float]]:
    """Entropy of each patch per head: (heads, patches); the bias is that of all tokens."""
    bias = None if key_bias is None else key_bias[num_prefix:]
    return [
        attention_entropies(qh[num_prefix:], kh[num_prefix:], order, scale, bias) for qh, kh in zip(q, k, strict=True)
    ]


def full_attention(q: np.ndarray, k: np.ndarray, scale: float, key_bias: Row | None = None) -> list[list[list[float]]]:
    """Softmaxed attention over all tokens, per head."""
    return [[softmax(row) for row in attention_logits(qh, kh, scale, key_bias)] for qh, kh in zip(q, k, strict=True)]


def class_attention(
    q: np.ndarray, k: np.ndarray, scale: float, num_prefix: int, key_bias: Row | None = None
) -> list[list[float]]:
    """EViT's row: token 0's attention, softmaxed over all tokens, on each patch, per head."""
    return [softmax(attention_logits(qh[:1], kh, scale, key_bias)[0])[num_prefix:] for qh, kh in zip(q, k, strict=True)]


def mean_over_heads(per_head: Sequence[Row]) -> list[float]:
    return [math.fsum(values) / len(values) for values in zip(*per_head, strict=True)]


def renyi_importance(q: np.ndarray, k: np.ndarray, order: float, scale: float, num_prefix: int) -> list[float]:
    """Low entropy = keep: minus the mean over heads of each head's entropy."""
    return [-entropy for entropy in mean_over_heads(patch_entropies(q, k, order, scale, num_prefix))]


def evit_importance(q: np.ndarray, k: np.ndarray, scale: float, num_prefix: int) -> list[float]:
    return mean_over_heads(class_attention(q, k, scale, num_prefix))


# --- choosing and reducing ---------------------------------------------------------------------------------------


def kept_count(keep_rate: float, n: int) -> int:
    """k = ceil(ρ · n) for the decimal that was written, in exact fractions."""
    return math.ceil(Fraction(str(keep_rate)) * n)


def kept_places(scores: Row, k: int) -> list[int]:
    """Places of the k highest scores in raster order; of equal scores the lower place wins."""
    winners: set[int] = set()
    for _ in range(k):
        best = None
        for place, score in enumerate(scores):
            if place not in winners and (best is None or score > scores[best]):
                best = place
        assert best is not None
        winners.add(best)
    return [place for place in range(len(scores)) if place in winners]


def covering_places(scores: Row, k: int, positions: Sequence[int], grid: tuple[int, int], side: int) -> list[int]:
    """Places of the k patches kept with coverage, in raster order.

    The best patch of each cell of side × side original patches first, the best of these first, then the others;
    `positions` are the original numbers of the patches present, `FUSED` for a token that stands in no cell.
    """
    cells: dict[tuple[int, int], list[int]] = {}
    for place, position in enumerate(positions):
        if position != FUSED:
            row, column = divmod(position, grid[1])
            cells.setdefault((row // side, column // side), []).append(place)
    best = [max(places, key=lambda place: (scores[place], -place)) for places in cells.values()]
    others = [place for place in range(len(scores)) if place not in best]
    ranked = [sorted(group, key=lambda place: (-scores[place], place)) for group in (best, others)]
    return sorted((ranked[0] + ranked[1])[:k])


def standardised(scores: Row) -> list[float]:
    """Scores less their mean, over their standard deviation; zeros where all are alike."""
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    return [(score - mean) / deviation if deviation else 0.0 for score in scores]


def kept_originals(
    scores_of: Callable[[int, list[int]], Row], n: int, keep_rates: Sequence[float], fuse: bool = False
) -> list[list[int]]:
    """Original patch numbers kept after each stage; an earlier fused token that is kept appears as `FUSED`.

    `scores_of(stage, present)` scores the tokens present at a stage, given by their original numbers. As in EViT the
    fused token stands last, counts towards n, competes like any patch, and is not made when all are kept.
    """
    present, stages = list(range(n)), []
    for stage, rate in enumerate(keep_rates):
        k = kept_count(rate, len(present))
        kept = [present[place] for place in kept_places(scores_of(stage, present), k)]
        stages.append(kept)
        present = [*kept, FUSED] if fuse and k < len(present) else list(kept)
    return stages


def dropped(x: np.ndarray, kept: Sequence[int], num_prefix: int) -> np.ndarray:
    """The tokens that stay: the prefix tokens, then the kept patches."""
    return np.stack([x[i] for i in range(num_prefix)] + [x[num_prefix + place] for place in kept])


def fused_token(x: np.ndarray, weights: Row, kept: Sequence[int], num_prefix: int) -> np.ndarray:
    """EViT's fused token: Σ weight_j · x_j over the patches that go, weights not renormalised."""
    token = np.zeros(x.shape[1])
    for place, weight in enumerate(weights):
        if place not in kept:
            for channel in range(x.shape[1]):
                token[channel] += weight * float(x[num_prefix + place, channel])
    return token


def fused(x: np.ndarray, weights: Row, kept: Sequence[int], num_prefix: int) -> np.ndarray:
    """`dropped` with the fused token appended last."""
    return np.concatenate([dropped(x, kept, num_prefix), fused_token(x, weights, kept, num_prefix)[None]])


# --- merging -----------------------------------------------------------------------------------------------------


def cosine(a: Row, b: Row) -> float:
    dot = math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(float(x) ** 2 for x in a)) / math.sqrt(math.fsum(float(y) ** 2 for y in b))


def mean_keys(k: np.ndarray) -> np.ndarray:
    """Keys (heads, tokens, d) averaged over the heads."""
    return np.asarray(k, dtype=np.float64).mean(0)


def bipartite(k: np.ndarray, num_prefix: int, r: int, class_token: bool) -> list[list[int]]:
    """ToMe's matching (Bolya et al. 2023, section 3): the groups of tokens that become one, in their new order.

    Every second token of the sequence is in A, the others in B. Each patch in A draws one edge to the patch in B most
    like it; the r strongest edges are merged. Prefix tokens are kept apart, in front. Left of A comes before B; where
    there is no class token with the strongest edges first, else in its order.

    Args:
        k: keys of all tokens, (heads, tokens, d).
        num_prefix: tokens in front that take no part.
        r: edges to merge, at most as many as there are patches in the smaller set.
        class_token: whether the model has one.
    """
    keys = mean_keys(k)
    a = [i for i in range(num_prefix, len(keys)) if i % 2 == 0]
    b = [i for i in range(num_prefix, len(keys)) if i % 2 == 1]
    edges = {}
    for i in a:
        similar = [cosine(keys[i], keys[j]) for j in b]
        edges[i] = (max(similar), b[similar.index(max(similar))])
    ranked = sorted(a, key=lambda i: (edges[i][0], i), reverse=True)
    strongest, left = ranked[:r], ranked[r:]
    groups = [[i] for i in range(num_prefix)] + [[i] for i in (sorted(left) if class_token else left)]
    return groups + [[j, *(i for i in strongest if edges[i][1] == j)] for j in b]


def merged_into_nearest(k: np.ndarray, num_prefix: int, kept: Sequence[int]) -> list[list[int]]:
    """Groups of tokens: each patch that is not among `kept` (numbers of patches) joins the kept one most like it."""
    keys = mean_keys(k)
    groups = [[i] for i in range(num_prefix)] + [[num_prefix + j] for j in kept]
    for i in range(num_prefix, len(keys)):
        if i - num_prefix not in kept:
            similar = [cosine(keys[i], keys[num_prefix + j]) for j in kept]
            groups[num_prefix + similar.index(max(similar))].append(i)
    return groups


def merge(x: np.ndarray, sizes: Row, groups: Sequence[Sequence[int]]) -> tuple[np.ndarray, list[float]]:
    """One token for each group, the mean weighted by the tokens' sizes, and how many patches it stands for."""
    whole = [math.fsum(float(sizes[i]) for i in group) for group in groups]
    rows = [
        sum((float(sizes[i]) * np.asarray(x[i], dtype=np.float64) for i in group), np.zeros(x.shape[1])) / size
        for group, size in zip(groups, whole, strict=True)
    ]
    return np.stack(rows), whole
