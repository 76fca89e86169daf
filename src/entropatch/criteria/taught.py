"""`TaughtCriterion` decides for each token while the model trains, taught by a dense one; `Judge` is by what."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from entropatch.criteria.learned import LearnedCriterion, Note, Seen, weight


@dataclass(frozen=True)
class TaughtCriterion(LearnedCriterion):
    """What DynamicViT and those after it share: all tokens stay in training, masked by decisions D̂, and the loss is

        ratio_weight · 1/S Σ_s mean over images (`ratio` of stage s)²
        + token_weight · mean over the patches that count at the end, and their channels, of (t_i - t'_i)²

    with t and t' the tokens of student and dense teacher behind the final norm. Each stage notes its D̂ as "kept",
    (images, patches).

    Args:
        ratio_weight, token_weight: as above.
        seed: of the weights it starts from.
    """

    kind: ClassVar[str] = "_TaughtCriterion"
    needs_class_token: ClassVar[bool] = True
    teaches: ClassVar[bool] = True
    recipe: ClassVar[str | None] = "dynamicvit"

    ratio_weight: float = 2.0
    token_weight: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("ratio_weight", "token_weight"):
            object.__setattr__(self, name, weight(name, getattr(self, name)))

    @abstractmethod
    def ratio(self, note: Note) -> Tensor:
        """How far what a stage kept is from its share: of each image (images,), or of all of them ()."""

    def losses(self, seen: Seen) -> dict[str, Tensor]:
        ratios = [self.ratio(note).square().mean() for note in seen.notes]
        # None at a keep rate of 1.
        ratio = torch.stack(ratios).mean() if ratios else seen.tokens.new_zeros((), dtype=torch.float32)
        terms = {"ratio": self.ratio_weight * ratio}
        if self.token_weight:
            terms["tokens"] = self.token_weight * token_loss(seen)
        return terms


class Judge(nn.Module):
    """The network that DynamicViT's predictor and SPViT's selector share, for tokens of width d or their heads of it.

    With z = GELU(W LayerNorm(x) + b) it is MLP([first half of z, mean over the tokens that count of its other half]),
    d → d/2 → d/4 → 2, GELU between.
    """

    def __init__(self, d: int):
        super().__init__()
        self.embed: nn.Module = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d), nn.GELU())
        self.score: nn.Module = nn.Sequential(
            nn.Linear(d, d // 2),
            nn.GELU(),
            nn.Linear(d // 2, d // 4),
            nn.GELU(),
            nn.Linear(d // 4, 2),
        )

    def judged(self, x: Tensor, counted: Tensor) -> Tensor:
        """Logits (batch, n, …, 2) of keeping and dropping, of x (batch, n, …, d); `counted` (batch, n) is 0 or 1."""
        z = self.embed(x)
        local, rest = z.split(z.shape[-1] // 2, dim=-1)
        counted = counted.reshape(*counted.shape, *(1,) * (z.ndim - 2)).to(z.dtype)
        # A whole number but for rounding, and none may count; a bound of 1 would stop the gradient of a single one.
        number = counted.sum(1, keepdim=True).clamp(min=0.5)
        overall = (rest * counted).sum(1, keepdim=True) / number
        return self.score(torch.cat((local, overall.expand_as(rest)), dim=-1))


def token_loss(seen: Seen) -> Tensor:
    """The mean squared difference to the teacher's tokens, over channels and the patches that count at the end."""
    if seen.taught is None:
        raise ValueError("the loss of tokens asks for a teacher: a dense model of the same shape, or token_weight=0.")
    prefix, own = seen.num_prefix_tokens, seen.tokens.float()
    if seen.taught.shape != own.shape:
        raise ValueError(
            f"the teacher's tokens must have the shape of the model's, {tuple(own.shape)}, but have "
            f"{tuple(seen.taught.shape)}; use the dense model itself, or token_weight=0."
        )
    apart = (own - seen.taught.float())[:, prefix:].square().mean(2)
    if seen.mask is None:
        return apart.mean()
    counted = (seen.mask[:, prefix:] > 0.5).to(apart.dtype)
    return (apart * counted).sum() / counted.sum().clamp(min=1)
