"""Two criteria as one: a weighted mean of standardised scores, and the product of shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from entropatch.attention import BlockAttention
from entropatch.criteria.base import Criterion

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Mix(Criterion):
    """weight · z(a) + (1 - weight) · z(b), z a criterion's scores less their mean, over their standard deviation.

    Both are taken per image over the patches present (the deviation is that of a whole, Σ(s - mean)²/n); scores that
    are all alike count as 0. The scores must be finite. Both criteria ask the same attention: with a class token's row
    and an entropy one pass serves both; a second order of entropy costs another pass over the patches' logits.

    Args:
        a, b: the criteria, which may be mixtures themselves.
        weight: of `a`, in [0, 1].

    Raises:
        TypeError: not two criteria, or a weight that is no number.
        ValueError: a weight outside [0, 1].
    """

    a: Criterion
    b: Criterion
    weight: float = 0.5

    def __post_init__(self) -> None:
        _check_pair(self)
        given: Any = self.weight
        if isinstance(given, bool) or not isinstance(given, Real):
            raise TypeError(f"weight must be a number in [0, 1], the share of {self.a!r}, but got {given!r}.")
        object.__setattr__(self, "weight", float(given))
        if not 0 <= self.weight <= 1:  # NaN too
            raise ValueError(f"weight must lie in [0, 1], the share of {self.a!r}, but got {given!r}.")

    @property
    def needs_class_token(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.a.needs_class_token or self.b.needs_class_token

    @property
    def needs_projection(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.a.needs_projection or self.b.needs_projection

    @property
    def followed(self) -> tuple[Criterion, ...]:
        return self.a.followed + self.b.followed

    @property
    def lacks(self) -> str | None:
        return self.a.lacks or self.b.lacks

    def calibrate(self, model: nn.Module, images: Tensor) -> Criterion:
        return replace(self, a=self.a.calibrate(model, images), b=self.b.calibrate(model, images))

    @property
    def label(self) -> str:
        return f"{self.weight:.4g} × {self.a.label} + {1 - self.weight:.4g} × {self.b.label}"

    def importance(self, attention: BlockAttention) -> Tensor:
        a, b = (standardised(criterion.importance(attention)) for criterion in (self.a, self.b))
        return self.weight * a + (1 - self.weight) * b


@dataclass(frozen=True)
class Product(Criterion):
    """log(share of a) + log(share of b): patches in the order of the product of both shares (`Criterion.mass`).

        s_j = log(a_j / Σ a) + log(b_j / Σ b)

    `Product(ClassAttention(), Renyi(2.0))` ranks by the class token's attention times exp(-H₂), one over the
    perplexity of the patch's own attention. A share below the least normal float32 counts as that. Cost as of `Mix`.

    Args:
        a, b: the criteria.

    Raises:
        TypeError: not two criteria.
    """

    a: Criterion
    b: Criterion

    def __post_init__(self) -> None:
        _check_pair(self)

    @property
    def needs_class_token(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.a.needs_class_token or self.b.needs_class_token

    @property
    def needs_projection(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.a.needs_projection or self.b.needs_projection

    @property
    def followed(self) -> tuple[Criterion, ...]:
        return self.a.followed + self.b.followed

    @property
    def lacks(self) -> str | None:
        return self.a.lacks or self.b.lacks

    def calibrate(self, model: nn.Module, images: Tensor) -> Criterion:
        return replace(self, a=self.a.calibrate(model, images), b=self.b.calibrate(model, images))

    @property
    def label(self) -> str:
        return f"{self.a.label} × {self.b.label}"

    def importance(self, attention: BlockAttention) -> Tensor:
        shares = (criterion.mass(criterion.importance(attention)) for criterion in (self.a, self.b))
        a, b = (share.float().clamp_min(_TINY).log() for share in shares)
        return a + b


def standardised(scores: Tensor) -> Tensor:
    """Scores less their mean, over their standard deviation, per image: (batch, n) -> (batch, n), at least float32."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    away = scores - scores.mean(1, keepdim=True)
    deviation = away.square().mean(1, keepdim=True).sqrt()
    return torch.where(deviation > 0, away / deviation, 0.0)


def _check_pair(mixture: Mix | Product) -> None:
    for name, criterion in (("a", mixture.a), ("b", mixture.b)):
        if not isinstance(criterion, Criterion):
            raise TypeError(f"{name} must be a Criterion such as Renyi(order=2.0), but got {criterion!r}.")
