"""SPViT: each head says of each token whether to keep it, and how much its word counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropatch.criteria.learned import Decision, Entering, Making, Note, drawn_
from entropatch.criteria.taught import Judge, TaughtCriterion

ALWAYS = 2.0  # the score of a package token, above any patch's


@dataclass(frozen=True)
class HeadSelector(TaughtCriterion):
    """SPViT's token selector (Kong et al. 2022): a patch stays while its score is above 0.

    Before a pruning block, of its n patch tokens, cut into the H heads of the block's attention, x_j^h of width
    d = D/H; D̂ are the decisions so far (all 1 at first, and 1 for package tokens):

        z_j^h = GELU(W LayerNorm(x_j^h) + b),    W of d × d
        E_j^h = [z_j^local, Σ_j D̂_j z_j^rest / Σ_j D̂_j],    the first d/2 channels of z_j^h, and its others
        s_j^h = softmax(MLP(E_j^h)),    d → d/2 → d/4 → 2, GELU between;   s_j0 keeps, s_j1 drops
        a_j = sigmoid(MLP(m_j)),        m_j^h the mean of x_j^h over its channels, H → H/2 → H, GELU between
        s_j = Σ_h a_j^h s_j^h / Σ_h a_j^h,    π_j = softmax(Σ_h a_j^h log s_j^h / Σ_h a_j^h)

    The score is π_j0 - π_j1: with the schedule `TowardsShare` each image keeps the patches above 0, as many as it
    needs, and the reduction `Package` makes one token of the others, Σ_j s_j0 x_j / Σ_j s_j0, which is appended,
    attended to from this block on, and always kept. W and the MLP of E are shared by the heads.

    While the model trains all tokens stay, D̂ ← D̂ ⊙ GumbelSoftmax(π)_0, hard, with the gradients of the soft sample, and
    attention is masked as in `KeepPredictor`, without ε; the package token is made of the patches that this stage
    drops. Its loss, beside the cross entropy and 0.5 of the KL divergence to a frozen dense teacher
    (`Recipe.distillation`):

        ratio_weight · 1/S Σ_s (ρ^s - mean over images and patches D̂^s)²  +  token_weight · that of `KeepPredictor`

    so that the batch as a whole is to keep the share ρ^s, and images may differ.

    What differs from the released code: that draws its Gumbel noise at test too, and only masks there; here π decides,
    and patches leave. An image of which a stage drops nothing gets no package token; there it gets one of 10⁻⁶ in every
    channel. The latency table by which the paper chooses the rates is left out: `keep_rate` says them, such as
    (0.617, 0.598, 0.371) for its 0.617, 0.369 and 0.137 of all patches. Of one head the MLP of a has a width of 1. Some
    of its versions do not divide the package token by Σ_j s_j0; the paper does.

    Args:
        ratio_weight, token_weight: as above.
        seed: of the weights it starts from.
    """

    decides: ClassVar[bool] = True

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
        logits, keeping = selector(entering.patches, kept)
        # π_0 - π_1, of the sign of what it is made of however small that is.
        scores = ((logits[..., 0] - logits[..., 1]) / 2).tanh().detach().float().masked_fill(~patch, ALWAYS)
        if not entering.training:
            return Decision(scores, shares=keeping.detach())
        drawn = F.gumbel_softmax(logits.float(), hard=True, dim=-1)[..., 0].to(kept.dtype)
        now = torch.where(patch, kept * drawn, kept)
        packed = keeping.to(kept.dtype) * (kept - now)
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
        """Each patch's π_j0, divided by the sum over the tokens."""
        shares = (1 + scores.float()) / 2
        return shares / shares.sum(1, keepdim=True)

    def level(self, scores: Tensor) -> Tensor:
        """The score itself: above 0 where the heads keep the patch."""
        return scores.float()


class Selector(Judge):
    """One token selector: tokens (batch, n, width) and which of them count (batch, n) -> log π, (batch, n, 2), but for
    a constant of each token, and s_j0, (batch, n), float32 or better."""

    def __init__(self, width: int, heads: int):
        d = width // heads
        if width % (2 * heads) or d < 4:
            raise ValueError(
                f"the tokens must be of a width that 2 · {heads} heads divide, of at least 4 for each, but theirs is "
                f"{width}."
            )
        super().__init__(d)
        between = max(heads // 2, 1)
        self.heads = heads
        self.voice: nn.Module = nn.Sequential(nn.Linear(heads, between), nn.GELU(), nn.Linear(between, heads))

    def forward(self, x: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        x = x.unflatten(2, (self.heads, -1))  # (batch, n, heads, d)
        logs = self.judged(x, counted)
        logs = logs.to(torch.promote_types(logs.dtype, torch.float32)).log_softmax(-1)
        voices = self.voice(x.mean(3)).to(logs.dtype).sigmoid()[..., None]
        voices = voices / voices.sum(2, keepdim=True)
        return (logs * voices).sum(2), (logs.exp() * voices)[..., 0].sum(2)
