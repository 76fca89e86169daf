"""SPViT: each head says of each token whether to keep it, and how much its word counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropatch.criteria.learned import Decision, Entering, Making, Note, drawn_
from entropatch.criteria.taught import TaughtCriterion

ALWAYS = 2.0  # the score of a package token, above any patch's


@dataclass(frozen=True)
class HeadSelector(TaughtCriterion):
    """SPViT's token selector (Kong et al. 2022): a patch stays while its score is above 0.

    Before a pruning block, of its n patch tokens, cut into the H heads of the block's attention, x_j^h of width
    d = D/H, behind a LayerNorm; D̂ are the decisions so far (all 1 at first):

        E_j^h = [GELU(W_l x_j^h + b_l), Σ_j D̂_j GELU(W_g x_j^h + b_g) / Σ_j D̂_j]        each of width d/2
        s_j^h = softmax(MLP(E_j^h)),    d → d/2 → 2, GELU between;   s_j0 keeps, s_j1 drops
        a_j = sigmoid(MLP(x̄_j)),        x̄_j^h the mean of x_j^h over its channels, H → H → H
        s_j = Σ_h a_j^h s_j^h / Σ_h a_j^h

    The score is s_j0 - s_j1: with the schedule `TowardsShare` each image keeps the patches above 0, as many as it
    needs, and the reduction `Package` makes one token of the others, Σ_j s_j0 x_j / Σ_j s_j0, which is appended,
    attended to from this block on, and always kept.

    While the model trains all tokens stay, D̂ ← D̂ ⊙ GumbelSoftmax(s)_0, hard, with the gradients of the soft sample, and
    attention is masked as in `KeepPredictor`, without ε; the package token is made of the patches that this stage
    drops. Its loss, beside the cross entropy and 0.5 of the KL divergence to a frozen dense teacher
    (`Recipe.distillation`):

        ratio_weight · 1/S Σ_s (ρ^s - mean over images and patches D̂^s)²  +  token_weight · that of `KeepPredictor`

    so that the batch as a whole is to keep the share ρ^s, and images may differ.

    What may differ from the original: the layers of its two MLPs are this package's reading, W_l, W_g and the MLPs are
    shared by the heads, and the latency table by which the paper chooses the rates is left out: `keep_rate` says them,
    such as (0.617, 0.598, 0.371) for its 0.617, 0.369 and 0.137 of all patches. An image of which a stage drops nothing
    gets no package token there.

    Args:
        ratio_weight, token_weight: as above.
        seed: of the weights it starts from.
    """

    @property
    def label(self) -> str:
        return "selected by the heads"

    def make(self, making: Making) -> nn.Module:
        return drawn_(Selector(making.width, making.heads or 1))

    def decide(self, entering: Entering) -> Decision:
        selector: Any = entering.weights
        kept = entering.kept
        positions = entering.positions
        patch = torch.ones_like(kept, dtype=torch.bool) if positions is None else positions >= 0
        shares = selector(entering.patches, kept * patch)
        scores = (shares[..., 0] - shares[..., 1]).detach().float().masked_fill(~patch, ALWAYS)
        if not entering.training:
            return Decision(scores)
        logits = shares.float().clamp_min(1e-20).log()
        drawn = F.gumbel_softmax(logits, hard=True, dim=-1)[..., 0].to(kept.dtype)
        now = torch.where(patch, kept * drawn, kept)
        packed = shares[..., 0].to(kept.dtype) * (kept - now)
        total = packed.sum(1, keepdim=True)
        some = total.detach() > 1e-6
        return Decision(
            scores,
            entering.masked(now),
            appended=(packed / torch.where(some, total, 1.0))[:, None],
            appended_mask=some.to(kept.dtype),
            note={"kept": now[:, : entering.total]},
        )

    def ratio(self, note: Note) -> Tensor:
        """ρ^s - mean over images and patches D̂^s."""
        return note.share - note.values["kept"].float().mean()

    def mass(self, scores: Tensor) -> Tensor:
        """Each patch's s_j0, divided by the sum over the tokens."""
        shares = (1 + scores.float()) / 2
        return shares / shares.sum(1, keepdim=True)

    def level(self, scores: Tensor) -> Tensor:
        """The score itself: above 0 where the heads keep the patch."""
        return scores.float()


class Selector(nn.Module):
    """One token selector: tokens (batch, n, width) and which of them count (batch, n) -> s, (batch, n, 2)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"the tokens must be of a width that 2 · {heads} heads divide, but theirs is {width}.")
        d = width // heads
        self.heads = heads
        self.norm: nn.Module = nn.LayerNorm(width)
        self.local: nn.Module = nn.Sequential(nn.Linear(d, d // 2), nn.GELU())
        self.overall: nn.Module = nn.Sequential(nn.Linear(d, d // 2), nn.GELU())
        self.score: nn.Module = nn.Sequential(nn.Linear(d, d // 2), nn.GELU(), nn.Linear(d // 2, 2))
        self.voice: nn.Module = nn.Sequential(nn.Linear(heads, heads), nn.GELU(), nn.Linear(heads, heads))

    def forward(self, x: Tensor, counted: Tensor) -> Tensor:
        x = self.norm(x).unflatten(2, (self.heads, -1))  # (batch, n, heads, d)
        counted = counted[..., None, None].to(x.dtype)
        # As in DynamicViT's predictor: whole numbers but for rounding, and none may count.
        overall = (self.overall(x) * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=0.5)
        local = self.local(x)
        shares = self.score(torch.cat((local, overall.expand_as(local)), dim=-1)).softmax(-1)
        voices = self.voice(x.mean(3)).sigmoid()[..., None]
        return (shares * voices).sum(2) / voices.sum(2)
