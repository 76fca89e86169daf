"""Slow twins of pruned torchvision and OpenCLIP towers: the dense model written out, dropped patches masked.

Nothing here uses entropatch, PyTorch's fused attention or its `nn.MultiheadAttention`; scores are the loops of
`reference.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import reference
import torch
from reference_model import Score
from torch import Tensor
from torch.nn import functional as F


@dataclass
class TowerPass:
    """What a twin gives: the model's output, and the patches kept and their scores by stage and image."""

    output: Any
    kept: list[list[list[int]]] = field(default_factory=list)
    scores: list[list[list[float]]] = field(default_factory=list)


def torchvision_twin(model: Any, images: Tensor, keep_rates: dict[int, float], score: Score) -> TowerPass:
    with torch.no_grad():
        patches = model._process_input(images)
        x = torch.cat([model.class_token.expand(len(images), -1, -1), patches], 1) + model.encoder.pos_embedding
        result = TowerPass(None)
        x, _ = _masked(x, list(model.encoder.layers), "self_attention", keep_rates, score, result)
        result.output = model.heads(model.encoder.ln(x)[:, 0])
    return result


def open_clip_twin(tower: Any, images: Tensor, keep_rates: dict[int, float], score: Score) -> TowerPass:
    """The output is that of the tower; where it gives tokens too, both."""
    with torch.no_grad():
        result = TowerPass(None)
        x, alive = _masked(tower._embeds(images), list(tower.transformer.resblocks), "attn", keep_rates, score, result)
        left = torch.stack([x[i, [0, *(1 + patch for patch in patches)]] for i, patches in enumerate(alive)])
        pooled, tokens = tower._pool(left)
        result.output = (pooled @ tower.proj, tokens) if tower.output_tokens else pooled @ tower.proj
    return result


def _masked(
    x: Tensor, blocks: list[Any], name: str, keep_rates: dict[int, float], score: Score, result: TowerPass
) -> tuple[Tensor, list[list[int]]]:
    alive = [list(range(x.shape[1] - 1)) for _ in range(len(x))]
    for number, block in enumerate(blocks):
        attention = getattr(block, name)
        q, k, v = _heads(attention, block.ln_1(x))
        bias = x.new_full((len(x), 1, 1, x.shape[1]), -torch.inf)
        bias[..., 0] = 0
        for image, patches in enumerate(alive):
            bias[image, ..., [1 + patch for patch in patches]] = 0
        y = ((q @ k.transpose(2, 3)) / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v
        if getattr(attention, "head_scale", None) is not None:
            y = y * attention.head_scale
        y = y.transpose(1, 2).flatten(2)
        y = attention.ln_inner(y) if hasattr(attention, "ln_inner") else y
        y = F.linear(y, attention.out_proj.weight, attention.out_proj.bias)
        y = block.ln_attn(y) if hasattr(block, "ln_attn") else y
        x = x + (block.ls_1(y) if hasattr(block, "ls_1") else y)
        if number in keep_rates:
            alive = _keep(q, k, alive, keep_rates[number], score, result)
        y = block.mlp(block.ln_2(x))
        x = x + (block.ls_2(y) if hasattr(block, "ls_2") else y)
    return x, alive


def _heads(attention: Any, x: Tensor) -> tuple[Tensor, ...]:
    packed = x @ attention.in_proj_weight.T + attention.in_proj_bias
    q, k, v = (
        torch.stack(part.split(part.shape[-1] // attention.num_heads, dim=-1), dim=1) for part in packed.chunk(3, -1)
    )
    return (attention.ln_q(q), attention.ln_k(k), v) if hasattr(attention, "ln_q") else (q, k, v)


def _keep(
    q: Tensor, k: Tensor, alive: list[list[int]], rate: float, score: Score, result: TowerPass
) -> list[list[int]]:
    scores, kept = [], []
    for image, patches in enumerate(alive):
        rows = [0, *(1 + patch for patch in patches)]
        scores.append(score(q[image, :, rows].numpy(), k[image, :, rows].numpy(), 1))
        count = reference.kept_count(rate, len(patches))
        kept.append([patches[place] for place in reference.kept_places(scores[-1], count)])
    result.scores.append(scores)
    result.kept.append(kept)
    return kept
