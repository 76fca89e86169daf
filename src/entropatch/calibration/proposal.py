"""Schedules as the search handles them: which blocks reduce, how, and at which keep rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from entropatch.config import PruneConfig
from entropatch.config_fields import setting_label
from entropatch.criteria import Criterion, Random
from entropatch.reductions import Drop, Reduction
from entropatch.schedule import KeepRate, exact_rate, kept_count

_exact = cache(exact_rate)
LEAST_RATE = 0.02  # of the patches present, in one block
DIGITS = 3  # of a keep rate


@dataclass(frozen=True)
class Choice:
    """What one block does with its patches, but for how many stay."""

    criterion: Criterion
    reduction: Reduction = field(default_factory=Drop)
    coverage: int | None = None

    @property
    def label(self) -> str:
        return setting_label(self.criterion, self.reduction, self.coverage, KeepRate())

    @property
    def is_random(self) -> bool:
        return self.reduction.needs_scores and isinstance(self.criterion, Random)


@dataclass(frozen=True)
class Cut:
    """One reducing block: 0-based, what it does, and its keep rate ρ in (0, 1]."""

    block: int
    choice: Choice
    rate: float


Cuts = tuple[Cut, ...]


def config_of(cuts: Sequence[Cut]) -> PruneConfig:
    """The setting; one that keeps all patches for no cuts at all."""
    if not cuts:
        return PruneConfig(keep_rate=1.0)
    return PruneConfig(
        keep_rate=tuple(cut.rate for cut in cuts),
        criterion=_one_or_each([cut.choice.criterion for cut in cuts]),
        blocks=tuple(cut.block for cut in cuts),
        reduction=_one_or_each([cut.choice.reduction for cut in cuts]),
        coverage=_one_or_each([cut.choice.coverage for cut in cuts]),
    )


def _one_or_each(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else tuple(values)


def cuts_of(config: PruneConfig, depth: int) -> Cuts:
    """The cuts of a setting with keep rates on a model of so many blocks."""
    return tuple(
        Cut(stage.block, Choice(stage.criterion, stage.reduction, stage.coverage), stage.keep_rate)
        for stage in config.stages(depth)
    )


def powered(cuts: Sequence[Cut], power: float) -> Cuts:
    """The same cuts with every rate ρ moved to ρ^power; those that keep all are left out."""
    moved = (replace(cut, rate=max(rounded(cut.rate**power), least_rate(cut.choice.reduction))) for cut in cuts)
    return tuple(cut for cut in moved if cut.rate < 1)


@cache
def least_rate(reduction: Reduction) -> float:
    """The share of the patches below which a reduction does not go, whatever the rate: ToMe's matching removes half."""
    return round(1 - reduction.most_removed(1000) / 1000, DIGITS)


def rounded(rate: float) -> float:
    return min(max(round(rate, DIGITS), LEAST_RATE), 1.0)


def token_counts(cuts: Sequence[Cut], depth: int, patches: int) -> list[tuple[int, int]]:
    """Patch tokens that enter and that leave the middle of each block."""
    by_block, n, counts = {cut.block: cut for cut in cuts}, patches, []
    for block in range(depth):
        entering, cut = n, by_block.get(block)
        if cut is not None:
            k = max(kept_count(_exact(cut.rate), n), n - cut.choice.reduction.most_removed(n), 1)
            n = k + (1 if cut.choice.reduction.appends and k < n else 0)
        counts.append((entering, n))
    return counts
