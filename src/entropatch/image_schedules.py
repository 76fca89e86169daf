"""Schedules that take how many patches stay from the images: a threshold for each, or a total that a batch shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from entropatch.schedule import Schedule, Site, check_sizes, exact_rate, kept_count, number


@dataclass(frozen=True)
class Threshold(Schedule):
    """Each image keeps its patches whose importance reaches a threshold: as many as its own attention says.

    Compared is `Criterion.level`, for `Renyi` 1 - H / log n: a patch stays whose normalised entropy H / log n, the mean
    over heads, is at most 1 - least. The number is rounded up to one of at most four sizes, so that images of one size
    run together, and is at least 1. What an image gives does not depend on the others of its batch.

    A threshold that is right for one model is wrong for the next; `entropatch.calibrate_threshold` finds those whose
    mean cost meets a budget.

    Args:
        least: the threshold; or one for each reducing block.
        sizes: as in `Schedule`, each in (0, 1]; at most four with 1.0, which is always one.
    """

    per_image: ClassVar[bool] = True
    reads: ClassVar[str] = "level"

    least: float | tuple[float, ...] = 0.5
    sizes: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        given: Any = self.least
        listed = isinstance(given, Sequence) and not isinstance(given, str)
        values = tuple(number("least", value) for value in (given if listed else (given,)))
        if not values or any(value != value for value in values):
            raise ValueError(f"least must be a number, or one for each reducing block, but got {given!r}.")
        object.__setattr__(self, "least", values if listed else values[0])
        object.__setattr__(self, "sizes", check_sizes(self.sizes))

    @property
    def label(self) -> str:
        values = self.least if isinstance(self.least, tuple) else (self.least,)
        return f"a level of at least {', '.join(f'{value:.4g}' for value in values)}"

    def check(self, stages: int) -> None:
        if isinstance(self.least, tuple) and len(self.least) != stages:
            raise ValueError(
                f"least must be one number or one for each of the {stages} blocks, but got {len(self.least)}."
            )

    def count(self, site: Site, mass: Tensor | None) -> Tensor:
        assert mass is not None
        least = self.least[site.stage] if isinstance(self.least, tuple) else self.least
        # Of what is no number nothing is known, and it stays.
        return (~(mass < least)).sum(1).clamp(min=1)


@dataclass(frozen=True)
class SharedBudget(Schedule):
    """A batch keeps as many patches as at a keep rate, and its images share them out by their importance.

    In the first reducing block an image of n patches keeps k - d, k or k + d, with k = ceil(ρ·n) as at the fixed rate
    and d = spread · k, rounded down, at most n - k. Of a batch of B images all have the best k - d of their own; each
    then has two portions of d to ask for, the next best and those after them, and of these 2B portions the B with the
    highest mean `Criterion.level` are granted: B·k patches in all. That is the choice of the highest levels of the
    whole batch, d at a time; portions of equal mean go to the earlier portion, and to the earlier image. In later
    blocks each image keeps ceil(ρ·n) of what it has.

    Results depend on the batch: an image is pruned harder beside hard ones, in another order of the test set, or on
    another number of devices, which share nothing. A batch of one image is the fixed rate.

    Args:
        spread: how far an image may be from the fixed rate, in [0, 1).
    """

    per_image: ClassVar[bool] = True
    reads: ClassVar[str] = "level"

    spread: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "spread", number("spread", self.spread))
        if not 0 <= self.spread < 1:
            raise ValueError(f"spread must be a number in [0, 1), but got {self.spread!r}.")

    @property
    def uses_keep_rate(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return True

    @property
    def label(self) -> str:
        return f"shared out in the batch, ± {100 * self.spread:.4g} %"

    def rounded(self, counts: Tensor, site: Site) -> Tensor:
        """As they are: three sizes at most."""
        return counts

    def count(self, site: Site, mass: Tensor | None) -> Tensor:
        assert mass is not None
        k, batch = kept_count(site.rate, site.n), mass.shape[0]
        numerator, denominator = exact_rate(self.spread)
        d = 0 if site.stage else min(numerator * k // denominator, site.n - k)
        if not d or not batch:
            return torch.full((batch,), k, dtype=torch.int64, device=mass.device)
        # NaN would otherwise come first; of what is no number nothing is known, and it asks for nothing.
        levels = mass.double().nan_to_num(nan=-torch.inf).sort(dim=1, descending=True).values
        portions = torch.stack((levels[:, k - d : k], levels[:, k : k + d])).mean(2).flatten()
        granted = portions.argsort(descending=True, stable=True)[:batch]
        return k - d + d * torch.bincount(granted % batch, minlength=batch)
