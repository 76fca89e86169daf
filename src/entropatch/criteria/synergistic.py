"""STAR: class attention within a block, and the relevance of each place to what the model says, learnt offline."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from entropatch.attention import BlockAttention
from entropatch.criteria.base import Criterion
from entropatch.criteria.offline import dense_pass


@dataclass(frozen=True)
class Synergistic(Criterion):
    """STAR (Zhang et al. 2024): intra^a · inter^(1 - a), a product of shares; large = keep.

    intra_j is the class token's attention on the patch, mean over heads, in the block that prunes. inter_j is the
    relevance of the patch's place to the model's output, the same for all images, one map for each block, which
    `calibrate` makes offline. A token's place is its original one, also after earlier prunings; a token at no place,
    such as a fused one, has the mean of the map.

        inter_j = mean over images of r_j / Σ r,   r_j = |Σ_c (x_jc - x̄_c) ∂y/∂x_jc|

    with x_j the patch as it enters the block, x̄ the mean of the image's patches there, and y the largest output of the
    model: to first order what the output would change if the patch were like the others. (Gradient times input alone is
    nothing before a norm, which no length of x_j passes.) The original propagates relevance backwards by its own rules,
    and gives each block a keep rate that is linear in how alike the patches are; here the setting says the rates.

    Args:
        share: a in [0, 1], the exponent of the class attention; 1 is class attention alone.
        relevance: the maps, one tuple for each block, one number for each patch that enters the model; empty until
            `calibrate` has made them, and then refused.
    """

    needs_class_token: ClassVar[bool] = True

    share: float = 0.3
    relevance: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        share: Any = self.share
        if isinstance(share, bool) or not isinstance(share, Real):
            raise TypeError(f"share must be a number in [0, 1], but got {share!r}.")
        if not 0 <= float(share) <= 1:
            raise ValueError(f"share must lie in [0, 1], but got {share!r}.")
        object.__setattr__(self, "share", float(share))
        if len({len(row) for row in self.relevance}) > 1:
            raise ValueError("relevance must have equally many patches in every block; let calibrate() make it.")

    @property
    def label(self) -> str:
        return "STAR"

    @property
    def lacks(self) -> str | None:
        if self.relevance:
            return None
        return "Synergistic needs the relevance of each place; use criterion=Synergistic().calibrate(model, images)"

    def calibrate(self, model: nn.Module, images: Tensor, batch: int = 16) -> Synergistic:
        """This criterion with the maps of a model, from normalised images (n, 3, H, W); no labels are needed."""
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        if not isinstance(images, Tensor) or images.ndim != 4 or not len(images):
            raise ValueError(f"images must be normalised images (n, 3, H, W), at least one, but got {got}.")
        totals: list[Tensor] = []
        for part in images.split(batch):
            output, entered, prefix = dense_pass(model, part)
            answer = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
            gradients = torch.autograd.grad(answer.flatten(1).amax(1).sum(), entered, allow_unused=True)
            maps = [_relevance(x.detach(), slope, prefix) for x, slope in zip(entered, gradients, strict=True)]
            totals.append(torch.stack(maps).sum(1))  # (blocks, patches)
        rows = (torch.stack(totals).sum(0) / len(images)).tolist()
        return replace(self, relevance=tuple(tuple(float(f"{value:.6g}") for value in row) for row in rows))

    def importance(self, attention: BlockAttention) -> Tensor:
        if self.lacks is not None:
            raise ValueError(f"{self.lacks}.")
        inter = self._map(attention)
        intra = attention.class_attention().mean(1)
        places = attention.positions
        if places is None:
            places = torch.arange(attention.num_patches, device=intra.device).expand(intra.shape[0], -1)
        there = inter.to(intra)[places.clamp_min(0)]
        there = torch.where(places < 0, inter.mean().to(intra), there)
        return intra**self.share * there ** (1 - self.share)

    def mass(self, scores: Tensor) -> Tensor:
        """Each patch's product, divided by the sum over the patches."""
        return scores.float() / scores.float().sum(1, keepdim=True)

    def _map(self, attention: BlockAttention) -> Tensor:
        total = attention.num_patches if attention.total is None else attention.total
        if attention.block >= len(self.relevance) or len(self.relevance[0]) != total:
            raise ValueError(
                f"the relevance was learnt of {len(self.relevance)} blocks with {len(self.relevance[0])} patches, but "
                f"block {attention.block} of a model with {total} patches was asked for; calibrate() on that model, at "
                "that size of image."
            )
        return torch.tensor(self.relevance[attention.block], device=attention.q.device)


def _relevance(x: Tensor, slope: Tensor | None, prefix: int) -> Tensor:
    """Shares of the patches of each image in r: (images, prefix + patches, width) -> (images, patches), float32."""
    patches = x[:, prefix:].float()
    if slope is None:  # nothing that the model says depends on it
        return torch.full_like(patches[..., 0], 1 / patches.shape[1])
    away = patches - patches.mean(1, keepdim=True)
    gained = (away * slope[:, prefix:].float()).sum(2).abs()
    return gained / gained.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
