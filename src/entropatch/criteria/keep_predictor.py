"""DynamicViT: a small network before some of the blocks predicts from the tokens which of them to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropatch.criteria.learned import Decision, Entering, Making, Note, drawn_
from entropatch.criteria.taught import Judge, TaughtCriterion

EPSILON = 1e-6  # of the masked softmax


@dataclass(frozen=True)
class KeepPredictor(TaughtCriterion):
    """DynamicViT's prediction module (Rao et al. 2021); large = keep.

    Before a pruning block, of its n patch tokens x_i of width D, with D̂ the decisions so far (all 1 at first):

        z_i = GELU(W x̄_i + b)                          x̄ = LayerNorm(x), W of D × D
        z_i = [z_i^local, z^global],                   z_i^local the first D/2 channels of z_i,
        z^global = Σ_i D̂_i z_i^rest / Σ_i D̂_i          of its other channels
        π_i = softmax(MLP(z_i))                        D → D/2 → D/4 → 2, GELU between; π_i0 keeps, π_i1 drops

    At inference the k patches with the highest log π_i0 stay, k = int(n0 · ρ^s) of the n0 that entered the model in the
    s-th pruning block: the schedule `ShareOfTotal`; the others are gone before the block's attention.

    While the model trains all tokens stay, and D̂ ← D̂ ⊙ GumbelSoftmax(π)_0, hard, with the gradients of the soft sample.
    A dropped token is no key any more but for itself: the attention over the N tokens of the later blocks is

        A_ij = (G_ij exp(S_ij - m_i) + ε/N) / (Σ_k G_ik exp(S_ik - m_i) + ε),    G_ij = 1 where i = j, else D̂_j

    with m_i = max_k S_ik over all tokens and ε = 10⁻⁶, as in the released code; the paper has no ε. It matters where a
    row attended to dropped tokens above all: what is left of it then becomes even, dropped tokens included.

    Its loss, beside the cross entropy and 0.5 of the KL divergence to a frozen dense teacher (`Recipe.distillation`):

        ratio_weight · 1/S Σ_s mean over images (ρ^s - 1/n0 Σ_i D̂_i^s)²
        + token_weight · mean over the patches with D̂_i = 1 at the end, and their channels, of (t_i - t'_i)²

    with t and t' the tokens of student and teacher behind the final norm.

    What differs from the released code: that has ε in the blocks before the first pruning block too, where it changes
    next to nothing. Its n0 is 196, whatever the image. The patches that stay keep their own order, there that of their
    scores, which no output depends on. Every prefix token is kept. Where no patch counts any more z^global is 0, there
    not a number. The weights are the same: `in_conv` and `out_conv` of its s-th predictor are `embed` and `score` of
    the s-th pruning block.

    Args:
        ratio_weight, token_weight: as above; the paper's 2 and 0.5.
        seed: of the weights it starts from.
    """

    @property
    def label(self) -> str:
        return "predicted"

    def make(self, making: Making) -> nn.Module:
        return drawn_(Predictor(making.width))

    def decide(self, entering: Entering) -> Decision:
        predictor: Any = entering.weights
        kept = entering.kept
        log_shares = predictor(entering.patches, kept)
        log_shares = log_shares.to(torch.promote_types(log_shares.dtype, torch.float32))
        scores = log_shares[..., 0]
        if not entering.training:
            return Decision(scores)
        now = kept * F.gumbel_softmax(log_shares, hard=True, dim=-1)[..., 0].to(kept.dtype)
        return Decision(scores.detach(), entering.masked(now), mask_epsilon=EPSILON, note={"kept": now})

    def ratio(self, note: Note) -> Tensor:
        """ρ^s - mean over patches D̂^s, of each image."""
        return note.share - note.values["kept"].float().mean(1)

    def mass(self, scores: Tensor) -> Tensor:
        """Each patch's probability to be kept, divided by the sum over the patches."""
        shares = scores.float().exp()
        return shares / shares.sum(1, keepdim=True)


class Predictor(Judge):
    """One prediction module: tokens (batch, n, width) and which of them count (batch, n) -> log π, (batch, n, 2)."""

    def __init__(self, width: int):
        if width % 4:
            raise ValueError(f"the tokens must be of a width that 4 divides, but theirs is {width}.")
        super().__init__(width)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        return self.judged(x, kept).log_softmax(-1)
