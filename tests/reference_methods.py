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


def ats_sampled(scores: Row, samples: int, among: int | None = None) -> list[int]:
    """Places of the sampled patches, ascending: sorted, summed up, min-max, and the nearest to each grid point.

    The nearest of the `among` highest scores; None: of all.
    """
    order = sorted(range(len(scores)), key=lambda j: scores[j])
    sums = [math.fsum(scores[j] for j in order[: i + 1]) for i in range(len(order))]
    if sums[-1] == sums[0]:
        return sorted(order)
    unit = [(s - sums[0]) / (sums[-1] - sums[0]) for s in sums]
    first = min(u for u in unit if u > 0)
    points = [first + (1 - first) * i / (samples - 1) for i in range(samples)] if samples > 1 else [first]
    there = range(max(len(unit) - (among or len(unit)), 0), len(unit))
    return sorted({order[min(there, key=lambda i: abs(unit[i] - point))] for point in points})


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
    """A float64 timm model of plain blocks on one image: the best floor(rate · n) patches, chosen before each of
    `blocks`, run it and those behind it, until the next of them.

    Returns the output and the patches chosen before each of them.
    """
    prefix = model.num_prefix_tokens
    stages: list[list[int]] = []
    g: dict[int, float] = {}
    with torch.no_grad():
        x = embedded(model, image)
        n = x.shape[1] - prefix
        chosen, waiting, extra = list(range(n)), [], None
        for number, block in enumerate(model.blocks):
            if number in blocks:
                chosen = reference.kept_places([g[j] for j in range(n)], math.floor(rate * n))
                stages.append(chosen)
                waiting = [j for j in range(n) if j not in chosen]
                if representative:
                    total = math.fsum(g[j] for j in waiting)
                    extra = torch.stack([g[j] / total * x[:, prefix + j] for j in waiting]).sum(0)[:, None]
            rows = [*range(prefix), *(prefix + j for j in chosen)]
            entering = x[:, rows] if extra is None else torch.cat([x[:, rows], extra], 1)
            q, k, v = softmaxed(block, entering)
            y = entering + attended(block, q, k, v)
            y = y + block.ls2(block.mlp(block.norm2(y)))
            heads = reference.class_attention(q, k, block.attn.scale, prefix)
            for place, j in enumerate(chosen):
                new = math.fsum(head[place] for head in heads)
                g[j] = new if number < begin else (1 - share) * g[j] + share * new
            if extra is not None:
                extra = y[:, -1:]
                for j in waiting:
                    x[:, prefix + j] += y[:, -1] - entering[:, -1]
            x[:, rows] = y[:, : len(rows)]
        return model.forward_head(model.norm(x)), stages


# --- DynamicViT (Rao et al. 2021) --------------------------------------------------------------------------------


def linear(layer: Any, x: Sequence[float]) -> list[float]:
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [math.fsum(a * b for a, b in zip(row, x, strict=True)) + c for row, c in zip(weight, bias, strict=True)]


def gelu(x: Sequence[float]) -> list[float]:
    return [0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x]


def layer_norm(layer: Any, x: Sequence[float]) -> list[float]:
    mean = math.fsum(x) / len(x)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in x) / len(x) + layer.eps)
    scale, shift = layer.weight.tolist(), layer.bias.tolist()
    return [(value - mean) / spread * a + b for value, a, b in zip(x, scale, shift, strict=True)]


def keep_shares(predictor: Any, x: Sequence[Sequence[float]], counted: Sequence[float]) -> list[tuple[float, float]]:
    """log π of each patch, of the prediction module's own equations; `counted` is D̂ so far."""
    z = [gelu(linear(predictor.embed[1], layer_norm(predictor.embed[0], row))) for row in x]
    half = len(z[0]) // 2
    total = math.fsum(counted)
    overall = [math.fsum(d * row[c] for d, row in zip(counted, z, strict=True)) / total for c in range(half, 2 * half)]
    shares = []
    for row in z:
        y = row[:half] + overall
        for number in (0, 2):
            y = gelu(linear(predictor.score[number], y))
        keep, drop = linear(predictor.score[4], y)
        top = max(keep, drop)
        rest = top + math.log(math.exp(keep - top) + math.exp(drop - top))
        shares.append((keep - rest, drop - rest))
    return shares


def dynamic_pass(
    model: Any, predictors: dict[int, Any], image: Tensor, blocks: Sequence[int], rate: float
) -> tuple[Tensor, list[list[int]]]:
    """A float64 timm model of plain blocks on one image, of which patches are dropped before some blocks."""
    prefix, stages = model.num_prefix_tokens, []
    with torch.no_grad():
        x = embedded(model, image)
        n = x.shape[1] - prefix
        present = list(range(n))
        for number, block in enumerate(model.blocks):
            if number in blocks:
                shares = keep_shares(predictors[number], x[0, prefix:].tolist(), [1.0] * len(present))
                places = reference.kept_places([keep for keep, _ in shares], int(n * rate ** (len(stages) + 1)))
                x = x[:, [*range(prefix), *(prefix + place for place in places)]]
                present = [present[place] for place in places]
                stages.append(present)
            q, k, v = softmaxed(block, x)
            x = x + attended(block, q, k, v)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return model.forward_head(model.norm(x)), stages


def masked_attention(block: Any, y: Tensor, counted: Sequence[Tensor] | None = None, epsilon: float = 0.0) -> Tensor:
    """What the attention of a plain timm block adds to one image's tokens, from y (1, tokens, width), with gradients.

    Row i is Σ_j A_ij v_j with A_ij = G_ij exp(S_ij) / Σ_k G_ik exp(S_ik), G_ij = 1 where i = j, else D̂_j; with ε the
    exponentials are taken below the row's largest logit, ε is added to their sum, and an even share of it to each.
    """
    attention, tokens = block.attn, y.shape[1]
    q, k, v = attention.qkv(y)[0].reshape(tokens, 3, attention.num_heads, -1).permute(1, 2, 0, 3)
    q, k = attention.q_norm(q), attention.k_norm(k)
    one = torch.ones((), dtype=y.dtype)
    heads = []
    for h in range(q.shape[0]):
        rows = []
        for i in range(tokens):
            row = torch.stack([one if counted is None or i == j else counted[j] for j in range(tokens)])
            logits = k[h] @ q[h, i] * attention.scale
            terms = (logits - max(logits)).exp() * row
            shares = [(term + epsilon / tokens) / (terms.sum() + epsilon) for term in terms]
            rows.append(sum(share * value for share, value in zip(shares, v[h], strict=True)))
        heads.append(torch.stack(rows))
    return attention.proj(torch.cat(heads, dim=1)[None])


def masked_pass(
    model: Any, image: Tensor, decide: Callable[[int, Tensor, list[Tensor]], list[Tensor] | None], epsilon: float = 0.0
) -> tuple[Tensor, list[Tensor]]:
    """A float64 timm model of plain blocks on one image, with gradients, whose tokens cease to count but stay.

    `decide(block, patches (n, width), counted)` says how much each patch counts from this block on; None: as before.
    ε is that of `masked_attention`, from the first decision on. Returns all tokens, normed, and how much each patch
    counts at the end.
    """
    prefix = model.num_prefix_tokens
    x = embedded(model, image)
    counted, decided = [torch.ones((), dtype=x.dtype)] * (x.shape[1] - prefix), False
    for number, block in enumerate(model.blocks):
        now = decide(number, x[0, prefix:], counted)
        counted, decided = now or counted, decided or now is not None
        ones = [torch.ones((), dtype=x.dtype)] * prefix
        x = x + block.ls1(masked_attention(block, block.norm1(x), [*ones, *counted], epsilon if decided else 0.0))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.norm(x), counted


# --- Token Cropr (Bergner et al. 2025) ---------------------------------------------------------------------------


def normed(layer: Any, x: Tensor, eps: float) -> Tensor:
    """LayerNorm of one token, (width,), by its own equation, with gradients."""
    centred = x - x.mean()
    return centred / (centred.square().mean() + eps).sqrt() * layer.weight + layer.bias


def cropr_pass(
    model: Any, scorers: dict[int, Any], image: Tensor, removed: Sequence[int], join: bool
) -> tuple[Tensor, Tensor, list[list[int]], list[Tensor]]:
    """A float64 timm model of plain blocks on one image, with gradients: patches leave before some blocks, each time
    as many as `removed` says.

    Returns the output, all normed tokens, the patches present after each pruning, and the auxiliary predictions.
    """
    prefix, stages, auxiliary = model.num_prefix_tokens, [], []
    x = embedded(model, image)
    present = list(range(x.shape[1] - prefix))
    waiting: dict[int, Tensor] = {}
    for number, block in enumerate(model.blocks):
        if number in scorers:
            scorer, rows = scorers[number], [row.detach() for row in x[0]]
            scores = [math.fsum((query * row).sum().item() for query in scorer.query) for row in rows[prefix:]]
            summed = []
            for query in scorer.query:
                terms = [((query * row).sum() / math.sqrt(len(row))).exp() for row in rows]
                y = sum(term * row for term, row in zip(terms, rows, strict=True)) / sum(terms)
                summed.append(y + scorer.mlp(normed(scorer.norm, y, 1e-6)))
            norm, classify = scorer.head
            auxiliary.append(classify(normed(norm, sum(summed) / len(summed), 1e-5)))
            places = reference.kept_places(scores, len(scores) - removed[len(stages)])
            for place, patch in enumerate(present):
                if place not in places:
                    waiting[patch] = x[:, prefix + place]
            x = x[:, [*range(prefix), *(prefix + place for place in places)]]
            present = [present[place] for place in places]
            stages.append(present)
        if join and number == len(model.blocks) - 1:
            there = waiting | {patch: x[:, prefix + place] for place, patch in enumerate(present)}
            x = torch.cat([x[:, :prefix], torch.stack([there[patch] for patch in sorted(there)], 1)], 1)
        x = x + block.ls1(masked_attention(block, block.norm1(x)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    tokens = model.norm(x)
    return model.forward_head(tokens), tokens, stages, auxiliary


# --- A-ViT (Yin et al. 2022) -------------------------------------------------------------------------------------


def halting_pass(
    model: Any, image: Tensor, scale: float, centre: float, epsilon: float
) -> tuple[Tensor, list[list[int]], list[Tensor], list[Tensor]]:
    """A float64 timm model of plain blocks on one image, with gradients, whose tokens halt one by one.

    Only the tokens that run take part in a block. Returns the output; the patches that still run behind each block but
    the last; N_k + r_k of each token; and Σ_k h_k of each block.
    """
    prefix, depth = model.num_prefix_tokens, len(model.blocks)
    x = embedded(model, image)
    size = x.shape[1]
    values = [x[0, k] for k in range(size)]
    running = list(range(size))
    counted = [0, *range(prefix, size)]
    sums, left, ponder = [0.0] * size, [torch.ones((), dtype=x.dtype)] * size, [0.0] * size
    output, class_done = torch.zeros_like(values[0]), False
    stages, halting = [], []
    for number, block in enumerate(model.blocks):
        entering = torch.stack([values[k] for k in running])[None]
        y = entering + block.ls1(masked_attention(block, block.norm1(entering)))
        y = y + block.ls2(block.mlp(block.norm2(y)))
        for place, k in enumerate(running):
            values[k] = y[0, place]
        after, total = [], 0.0
        for k in running:
            if k not in counted:
                after.append(k)
                continue
            h = torch.ones((), dtype=x.dtype) if number == depth - 1 else (scale * values[k][0] - centre).sigmoid()
            total = total + h
            sums[k] = sums[k] + h
            ponder[k] = ponder[k] + 1
            if sums[k] < 1 - epsilon:
                if k == 0:
                    output = output + h * values[0]
                left[k] = left[k] - h
                after.append(k)
            else:
                if k == 0:
                    output, class_done = output + left[0] * values[0], True
                ponder[k] = ponder[k] + left[k]
        halting.append(total)
        running = after
        if number < depth - 1:
            stages.append([k - prefix for k in running if k >= prefix])
    assert class_done
    tokens = torch.stack([output, *values[1:]])[None]
    return model.forward_head(model.norm(tokens)), stages, [ponder[k] for k in counted], halting


# --- SPViT (Kong et al. 2022) ------------------------------------------------------------------------------------


def selector_shares(selector: Any, x: Sequence[Tensor], counted: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    """(log π, (2,), and s_0) of each token, of the token selector's own equations, with gradients; x are (width,)."""
    heads, width = selector.heads, len(x[0]) // selector.heads
    z = [[selector.embed(row[h * width : (h + 1) * width]) for h in range(heads)] for row in x]
    logs = []
    for h in range(heads):
        overall = sum(d * row[h][width // 2 :] for d, row in zip(counted, z, strict=True)) / sum(counted)
        logs.append([selector.score(torch.cat((row[h][: width // 2], overall))).log_softmax(0) for row in z])
    shares = []
    for j, row in enumerate(x):
        voices = selector.voice(torch.stack([part.mean() for part in row.split(width)])).sigmoid()
        mean = sum(voices[h] * logs[h][j] for h in range(heads)) / voices.sum()
        keeping = sum(voices[h] * logs[h][j][0].exp() for h in range(heads)) / voices.sum()
        shares.append((mean.log_softmax(0), keeping))
    return shares


def packaging_pass(
    model: Any, image: Tensor, selectors: dict[int, Any], drawn: Callable[[int, int, Tensor], Tensor] | None
) -> tuple[Tensor, Tensor, list[list[int]], list[Any], list[Any]]:
    """A float64 timm model of plain blocks on one image, with gradients, that packages patches before some blocks.

    With `drawn(stage, patch, log_shares)`, which says how much a patch is kept, all stay and are masked; without, those
    that are not kept leave. Returns the output, all normed tokens, the patches that stay in each stage, the share of
    the patches that count in each, and how much each patch counts at the end.
    """
    prefix = model.num_prefix_tokens
    x = embedded(model, image)
    one = torch.ones((), dtype=x.dtype)
    patches = list(range(x.shape[1] - prefix))
    total = len(patches)
    counted, extra, stages, shares = dict.fromkeys(patches, one), [], [], []
    for number, block in enumerate(model.blocks):
        if number in selectors:
            rows = [x[0, prefix + place] for place in range(len(patches) + len(extra))]
            s = selector_shares(selectors[number], rows, [*(counted[j] for j in patches), *extra])
            if drawn is None:
                stay = [place for place in range(len(patches)) if s[place][0][0] > s[place][0][1]]
                gone = [place for place in range(len(patches)) if place not in stay]
                packed = [(s[place][1], rows[place]) for place in gone]
            else:
                after = {j: counted[j] * drawn(len(stages), j, s[j][0]) for j in patches}
                stay, packed = patches, [(s[j][1] * (counted[j] - after[j]), rows[j]) for j in patches]
                counted = after
                shares.append(sum(counted.values()) / total)
            weights = sum((w for w, _ in packed), torch.zeros((), dtype=x.dtype))
            there = bool(weights > 1e-6)
            keep = [*range(prefix), *(prefix + place for place in stay)]
            parts = [x[:, keep], x[:, prefix + len(patches) :]]
            if there or drawn is not None:
                package = sum(w * row for w, row in packed) / (weights if there else one)
                parts.append(package[None, None])
                extra.append(one if there else 0 * one)
            x = torch.cat(parts, 1)
            patches = [patches[place] for place in stay]
            stages.append([j for j in patches if counted[j] > 0.5])
        d = [one] * prefix + [counted[j] for j in patches] + extra
        x = x + block.ls1(masked_attention(block, block.norm1(x), d))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    tokens = model.norm(x)
    return model.forward_head(tokens), tokens, stages, shares, [counted[j] for j in patches]
