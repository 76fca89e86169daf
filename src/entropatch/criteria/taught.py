"""`TaughtCriterion`: decides for each token while the model trains, and learns from a dense teacher how to."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

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
