"""Whole pruned models, built from stock timm models and attention masks: slow twins of `entropatch.surgery`.

Nothing here uses entropatch. Queries and keys are those that the stock model hands to PyTorch's attention; scores are
the loops of `reference.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import reference
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Score = Callable[[np.ndarray, np.ndarray, int], list[float]]
"""(queries, keys, prefix tokens) of one image, (heads, tokens, d) -> importance of each patch among these tokens."""

Choose = Callable[[list[float], int, list[int], int], list[int]]
"""(scores, how many stay, original numbers of the patches present, block) -> places that stay, ascending."""


def renyi(order: float) -> Score:
    def importance(q: np.ndarray, k: np.ndarray, prefix: int) -> list[float]:
        heads = reference.patch_attention(q, k, q.shape[-1] ** -0.5, prefix)
        return [-mean for mean in reference.mean_over_heads([[entropy(p, order) for p in rows] for rows in heads])]

    return importance


def entropy(probs: Sequence[float], order: float) -> float:
    """Definitions 2 and 3 word for word, in nats; `reference.renyi_entropy` has more digits but takes too long here."""
    if order == math.inf:
        return -math.log(max(probs))
    if order == 1:
        return -math.fsum(p * math.log(p) for p in probs)
    return math.log(math.fsum(p**order for p in probs)) / (1 - order)


def evit(q: np.ndarray, k: np.ndarray, prefix: int) -> list[float]:
    return reference.evit_importance(q, k, q.shape[-1] ** -0.5, prefix)


@contextmanager
def attention_inputs() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The (q, k) of every call of PyTorch's fused attention, in order, each (batch, heads, tokens, d)."""
    seen: list[tuple[Tensor, Tensor]] = []
    fused = F.scaled_dot_product_attention

    def listening(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((q.detach(), k.detach()))
        return fused(q, k, *args, **kwargs)

    with patch.object(F, "scaled_dot_product_attention", listening):
        yield seen


@dataclass
class MaskedPass:
    """One pass of a stock model whose dropped patches stay in the sequence and are masked.

    Attributes:
        logits: the model's output.
        kept: original patch numbers kept, stage by stage, image by image.
        scores: importance of the patches present, as `kept`.
        near_ties: how often `kept` was taken from `follow` although the twin's own choice differed in a near tie.
    """

    logits: Tensor
    kept: list[list[list[int]]] = field(default_factory=list)
    scores: list[list[list[float]]] = field(default_factory=list)
    near_ties: int = 0


def masked_pass(
    model: Any,
    images: Tensor,
    keep_rates: dict[int, float],
    score: Score | dict[int, Score],
    follow: Sequence[Tensor] | None = None,
    tolerance: float = 1e-5,
    choose: Choose | None = None,
) -> MaskedPass:
    """The dense stock model, with the patches that a stage drops masked out as keys of every later block.

    In a block of `keep_rates` the attention still sees all that came in; from its middle on a dropped patch acts on
    nothing. (What it does to itself is never read: the head gets the kept tokens alone.)

    Args:
        model: a stock timm model in evaluation mode.
        keep_rates: the keep rate of each pruning block.
        score: what ranks the patches; or what does in each pruning block.
        follow: kept patches, stage by stage, (batch, k), of the model under test. Where float32 and this twin disagree
            only about scores closer than `tolerance`, its choice is followed, so that later stages stay comparable.
    """
    prefix, batch = model.num_prefix_tokens, images.shape[0]
    alive: list[list[int]] = []  # patch numbers, per image
    result = MaskedPass(images)
    blocks = list(model.blocks)

    def mask(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        x = args[0]
        if not alive:
            alive.extend(list(range(x.shape[1] - prefix)) for _ in range(batch))
        bias = x.new_full((batch, 1, 1, x.shape[1]), -torch.inf)
        bias[:, :, :, :prefix] = 0
        for image, patches in enumerate(alive):
            bias[image, 0, 0, [prefix + patch for patch in patches]] = 0
        return args, {**kwargs, "attn_mask": bias}

    def prune(block: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        number = blocks.index(block)
        if number not in keep_rates:
            return
        stage, rate = len(result.kept), keep_rates[number]
        ranking = score[number] if isinstance(score, dict) else score
        q, k = (x.double().numpy() for x in seen[-1])
        scores, kept = [], []
        for image, patches in enumerate(alive):
            rows = [*range(prefix), *(prefix + patch for patch in patches)]
            scores.append(ranking(q[image][:, rows], k[image][:, rows], prefix))
            count = reference.kept_count(rate, len(patches))
            if choose is None:
                places = reference.kept_places(scores[-1], count)
            else:
                places = choose(scores[-1], count, patches, number)
            own = [patches[place] for place in places]
            theirs = own if follow is None else follow[stage][image].tolist()
            if own != theirs:
                assert_near_tie(dict(zip(patches, scores[-1], strict=True)), own, theirs, tolerance)
                result.near_ties += 1
            kept.append(theirs)
        result.scores.append(scores)
        result.kept.append(kept)
        alive[:] = kept

    handles = [block.register_forward_pre_hook(mask, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(prune) for block in blocks]
    try:
        with torch.no_grad(), attention_inputs() as seen:
            features = model.forward_features(images)
            rows = [[*range(prefix), *(prefix + patch for patch in patches)] for patches in alive]
            left = torch.stack([features[image, places] for image, places in enumerate(rows)])
            result.logits = model.forward_head(left)
    finally:
        for handle in handles:
            handle.remove()
    return result


def assert_near_tie(scores: dict[int, float], own: list[int], theirs: list[int], tolerance: float) -> None:
    """Two choices of equally many patches may differ only by patches that score alike."""
    assert len(own) == len(theirs), f"{len(theirs)} patches kept, {len(own)} expected"
    assert theirs == sorted(theirs), f"kept patches {theirs} are not in raster order"
    only_own, only_theirs = set(own) - set(theirs), set(theirs) - set(own)
    gap = max(scores[patch] for patch in only_own) - min(scores[patch] for patch in only_theirs)
    assert gap <= tolerance, f"kept {sorted(only_theirs)} in place of {sorted(only_own)}, which score {gap:g} higher"


def fused_pass(model: Any, image: Tensor, keep_rates: dict[int, float]) -> tuple[Tensor, list[list[int]]]:
    """EViT with its fused token on one image (1, 3, height, width), for timm models of plain `Block`s.

    Returns the output and the original patch numbers kept at each stage, `reference.FUSED` for a fused token.
    """
    prefix = model.num_prefix_tokens
    stages: list[list[int]] = []
    with torch.no_grad(), attention_inputs() as seen:
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))
        present = list(range(x.shape[1] - prefix))
        for i, block in enumerate(model.blocks):
            x = x + block.ls1(block.attn(block.norm1(x)))
            if i in keep_rates:
                q, k = (y[0].double().numpy() for y in seen[-1])
                weights = evit(q, k, prefix)
                count = reference.kept_count(keep_rates[i], len(present))
                if count < len(present):
                    kept = reference.kept_places(weights, count)
                    x = torch.from_numpy(reference.fused(x[0].numpy(), weights, kept, prefix))[None].to(x.dtype)
                    present = [*(present[place] for place in kept), reference.FUSED]
                stages.append(present[:count])
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return model.forward_head(model.norm(x)), stages


def merged_pass(
    model: Any,
    image: Tensor,
    groups_of: Callable[[int, np.ndarray, np.ndarray], list[list[int]] | None],
    proportional: bool = True,
) -> tuple[Tensor, list[list[set[int]]]]:
    """A model that merges tokens in the middle of its blocks, on one image, for float64 timm models of plain `Block`s.

    The attention is written out: softmax of scale · q·kᵀ + log(size of the key).

    Args:
        model: a stock timm model in float64, in evaluation mode.
        image: (1, 3, height, width), float64.
        groups_of: from block, queries and keys (heads, tokens, d) the groups of tokens that become one; None for none.
        proportional: whether the sizes are in the softmax.

    Returns:
        The output, and the patches that each token stands for after every block.
    """
    prefix, held = model.num_prefix_tokens, []
    with torch.no_grad():
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))
        sizes, sets = [1.0] * x.shape[1], [{i - prefix} if i >= prefix else set() for i in range(x.shape[1])]
        for number, block in enumerate(model.blocks):
            attention = block.attn
            y = block.norm1(x)
            qkv = attention.qkv(y).reshape(y.shape[1], 3, attention.num_heads, -1).permute(1, 2, 0, 3)
            q, k, v = attention.q_norm(qkv[0]), attention.k_norm(qkv[1]), qkv[2]
            bias = torch.tensor(sizes, dtype=x.dtype).log() if proportional else 0.0
            weights = (attention.scale * q @ k.transpose(1, 2) + bias).softmax(-1)
            y = attention.proj(attention.norm((weights @ v).transpose(0, 1).flatten(1))[None])
            x = x + block.ls1(y)
            groups = groups_of(number, q.numpy(), k.numpy())
            if groups is not None:
                merged, sizes = reference.merge(x[0].numpy(), sizes, groups)
                x, sets = torch.from_numpy(merged)[None], [set().union(*(sets[i] for i in group)) for group in groups]
            x = x + block.ls2(block.mlp(block.norm2(x)))
            held.append(sets[prefix:])
        return model.forward_head(model.norm(x)), held
