"""Schedules judged together: a race over more and more images, then small changes to the best ones."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from entropatch.calibration.judging import Judge
from entropatch.calibration.proposal import Choice, Cut, Cuts, config_of, rounded
from entropatch.calibration.sensitivity import Sensitivities
from entropatch.calibration.spending import Spending

KEPT = 4  # schedules that are changed further
OFFERED = 6  # choices of a block that a change may take


@dataclass(frozen=True)
class Judged:
    """A schedule and its mean loss on all images it is chosen by."""

    cuts: Cuts
    loss: float


class Search:
    """Looks for the schedule of the least loss under a budget.

    Args:
        judge: what tells the losses.
        sensitivities: of single blocks.
        spending: what schedules cost.
        batches: those it chooses by.
        most: reducing blocks at most.
        seed: of the changes that are tried.
    """

    judge: Judge
    sensitivities: Sensitivities
    spending: Spending
    batches: list[int]
    most: int
    random: random.Random

    def __init__(
        self,
        judge: Judge,
        sensitivities: Sensitivities,
        spending: Spending,
        batches: Sequence[int],
        most: int,
        seed: int,
    ):
        self.judge, self.sensitivities, self.spending = judge, sensitivities, spending
        self.batches, self.most, self.random = list(batches), most, random.Random(seed)
        self.tried: dict[Cuts, float] = {}

    def race(self, proposals: Sequence[Cuts], keep: int = KEPT) -> list[Judged]:
        """The best on all batches: all are judged on a quarter of them, the better half on half, the rest on all."""
        left = list(dict.fromkeys(proposals))
        for share in (0.25, 0.5, 1.0):
            some = self.batches[: max(1, math.ceil(share * len(self.batches)))]
            losses = {cuts: self.judge.loss(config_of(cuts), some) for cuts in left}
            left = sorted(left, key=lambda cuts: losses[cuts])
            self.tried |= losses
            if share < 1:
                left = left[: max(keep, math.ceil(len(left) / 2))]
        return [Judged(cuts, losses[cuts]) for cuts in left[:keep]]

    def refine(self, start: Sequence[Judged], budget: float, rounds: int, children: int = 6) -> list[Judged]:
        """Changes of the best ones, as long as they are better; on a quarter of the batches first."""
        best = sorted(start, key=lambda one: one.loss)[:KEPT]
        some = self.batches[: max(1, math.ceil(len(self.batches) / 4))]
        for _ in range(rounds):
            bar = self.judge.loss(config_of(best[0].cuts), some)
            fresh = [cuts for cuts in self._children(best, budget, children) if cuts not in self.tried]
            losses = {cuts: self.judge.loss(config_of(cuts), some) for cuts in fresh}
            self.tried |= losses
            hopeful = sorted((cuts for cuts in fresh if losses[cuts] < 1.05 * bar), key=lambda cuts: losses[cuts])
            found = [Judged(cuts, self.judge.loss(config_of(cuts), self.batches)) for cuts in hopeful[: children // 2]]
            self.tried |= {one.cuts: one.loss for one in found}
            best = sorted((*best, *found), key=lambda one: one.loss)[:KEPT]
        return best

    def drawn(self, budget: float, count: int) -> list[Cuts]:
        """Schedules at random: blocks, choices and rates, early and good ones more often."""
        found: list[Cuts] = []
        for _ in range(20 * count):
            blocks = sorted(
                self.random.sample(self.sensitivities.blocks, min(self.most, len(self.sensitivities.blocks)))
            )
            blocks = blocks[: self.random.randint(min(2, self.most), self.most)]
            cuts = tuple(Cut(b, self._choice(b), rounded(self.random.uniform(0.4, 0.9))) for b in blocks)
            met = self.spending.met(cuts, budget)
            if met is not None and met not in found:
                found.append(met)
            if len(found) == count:
                break
        return found

    def _children(self, best: Sequence[Judged], budget: float, count: int) -> list[Cuts]:
        found: list[Cuts] = []
        for _ in range(20 * count):
            parent = best[min(int(self.random.expovariate(1.2)), len(best) - 1)].cuts
            changed = parent
            for _ in range(self.random.choice((1, 1, 2))):
                changed = self.random.choice((_moved, _swapped, _shifted, _shifted, _thinned, _joined))(self, changed)
            met = self.spending.met(changed, budget) if changed else None
            if met is not None and met not in found and met not in self.tried:
                found.append(met)
            if len(found) == count:
                break
        return found

    def _choice(self, block: int) -> Choice:
        """One of a block's best choices, better ones more often."""
        ranked = self.sensitivities.ranked(block)[:OFFERED]
        return ranked[min(int(self.random.expovariate(0.7)), len(ranked) - 1)]


def _moved(search: Search, cuts: Cuts) -> Cuts:
    """A cut at a block nearby, with a choice that suits it."""
    i = search.random.randrange(len(cuts))
    block = cuts[i].block + search.random.choice((-2, -1, 1, 2))
    if block not in search.sensitivities.blocks or any(cut.block == block for cut in cuts):
        return cuts
    choice = cuts[i].choice if search.random.random() < 0.5 else search._choice(block)
    return _sorted((*cuts[:i], Cut(block, choice, cuts[i].rate), *cuts[i + 1 :]))


def _swapped(search: Search, cuts: Cuts) -> Cuts:
    """Another choice for a block."""
    i = search.random.randrange(len(cuts))
    if cuts[i].block not in search.sensitivities.blocks:  # of a registered method at the usual blocks
        return cuts
    return (*cuts[:i], replace(cuts[i], choice=search._choice(cuts[i].block)), *cuts[i + 1 :])


def _shifted(search: Search, cuts: Cuts) -> Cuts:
    """Another rate for a block; the others follow, so that the budget is met."""
    i = search.random.randrange(len(cuts))
    rate = rounded(cuts[i].rate ** search.random.choice((0.5, 0.7, 1.4, 2.0)))
    return (*cuts[:i], replace(cuts[i], rate=rate), *cuts[i + 1 :])


def _thinned(search: Search, cuts: Cuts) -> Cuts:
    """One cut less."""
    i = search.random.randrange(len(cuts))
    return (*cuts[:i], *cuts[i + 1 :]) if len(cuts) > 1 else cuts


def _joined(search: Search, cuts: Cuts) -> Cuts:
    """One cut more."""
    free = [block for block in search.sensitivities.blocks if all(cut.block != block for cut in cuts)]
    if len(cuts) >= search.most or not free:
        return cuts
    block = search.random.choice(free)
    return _sorted((*cuts, Cut(block, search._choice(block), rounded(search.random.uniform(0.6, 0.9)))))


def _sorted(cuts: Sequence[Cut]) -> Cuts:
    return tuple(sorted(cuts, key=lambda cut: cut.block))
