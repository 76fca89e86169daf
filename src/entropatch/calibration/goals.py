"""The three budgets: multiply-adds, speed, and the change of the output that is allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from entropatch.calibration.comparing import merging, usual
from entropatch.calibration.judging import Judge
from entropatch.calibration.planning import adding, planned
from entropatch.calibration.proposal import LEAST_RATE, Cut, Cuts, config_of, least_rate
from entropatch.calibration.refining import Judged, Search
from entropatch.calibration.sensitivity import FLOOR, Sensitivities
from entropatch.calibration.spending import Spending
from entropatch.calibration.subject import Subject

DRAWN, ROUNDS, CHILDREN = 12, 10, 6  # at effort 1
TRIES = 5  # of a budget that the measured speed misses, or of bisection for a drop


class BudgetError(ValueError):
    """No setting meets the budget, or every one does."""


@dataclass(frozen=True)
class Goal:
    """What is asked for; exactly one of them.

    Attributes:
        gflops: 10⁹ multiply-adds per image at most.
        speedup: times the dense model's speed at least.
        drop: the largest mean loss.
    """

    gflops: float | None = None
    speedup: float | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("gflops", "speedup", "drop") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one budget, gflops, speedup or drop, but got {' and '.join(given) or 'none'}.")
        for name, least in (("gflops", 0.0), ("speedup", 1.0), ("drop", 0.0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise TypeError(f"{name} must be a number, but got {value!r}.")
            if value is not None and not least < value < math.inf:
                raise ValueError(f"{name} must be a number above {least:g}, but got {value}.")

    @property
    def text(self) -> str:
        """In words, such as "at most 3 GFLOPs"."""
        if self.gflops is not None:
            return f"at most {self.gflops:g} GFLOPs"
        if self.speedup is not None:
            return f"at least {self.speedup:g} times dense's speed"
        return f"a loss of at most {self.drop:g}"


class Finder:
    """Finds the schedule that meets a goal.

    Args:
        subject: the model and its images.
        sensitivities: of its blocks.
        spending: what schedules cost, in time where the goal is speed.
    """

    subject: Subject
    sensitivities: Sensitivities
    spending: Spending
    effort: float
    search: Search

    def __init__(self, subject: Subject, sensitivities: Sensitivities, spending: Spending):
        self.subject, self.sensitivities, self.spending = subject, sensitivities, spending
        self.effort = subject.settings.effort
        self.judge: Judge = subject.judge
        self._steps = adding(sensitivities)
        settings = subject.settings
        self.search = Search(subject.judge, sensitivities, spending, subject.choosing, settings.most, settings.seed)

    def find(self, goal: Goal) -> tuple[Cuts, float]:
        """The schedule, and the cost that it and what it is compared with must meet.

        Raises:
            BudgetError: no schedule meets the goal, or it needs no pruning.
        """
        if goal.gflops is not None:
            return self._within(goal.gflops), goal.gflops
        if goal.speedup is not None:
            return self._fast(1 / goal.speedup), 1 / goal.speedup
        assert goal.drop is not None
        return self._close(goal.drop)

    def proposals(self, budget: float, drawn: int) -> list[Cuts]:
        """Schedules worth judging: those planned, the registered methods at the usual blocks, a few tokens merged in
        every block unless that many are ruled out, and some at random."""
        settings, blocks = self.subject.settings, self.sensitivities.blocks
        most = settings.most
        asked: list[tuple[int, int | None]] = [(count, None) for count in range(min(2, most), most + 1)]
        asked += [(most, first) for first in blocks[: math.ceil(len(blocks) / 2)]]
        found = [
            planned(self.sensitivities, self.spending, budget, step, count, first)
            for step in self._steps.values()
            for count, first in asked
        ]
        known = [cuts for _, cuts in usual(self.subject).values() if self._may_be_chosen(cuts)]
        met = [self.spending.met(cuts, budget) for cuts in (*found, *known) if cuts]
        if settings.most_blocks is None:
            every = [blocks] if settings.blocks is not None else [blocks, range(self.subject.depth)]
            met += [cuts for some in every for cuts in merging(self.subject, self.spending, budget, some).values()]
        if not any(met):  # what is best at a block, such as ToMe's pairs, may not reduce as far as the budget asks
            met += [self.spending.met(self._reducing_further(cuts), budget) for cuts in found if cuts]
        met += self.search.drawn(budget, drawn)
        return list(dict.fromkeys(cuts for cuts in met if cuts))

    def _reducing_further(self, cuts: Cuts) -> Cuts:
        """The same blocks and rates, each with the best choice that can leave as few patches as there may be."""
        return tuple(
            replace(cut, choice=choice)
            for cut in cuts
            for choice in [c for c in self.sensitivities.ranked(cut.block) if least_rate(c.reduction) <= LEAST_RATE][:1]
        )

    def _may_be_chosen(self, cuts: Cuts) -> bool:
        """Whether a known schedule is not random, and keeps to the blocks, and to how many of them, if any were asked
        for."""
        settings, blocks = self.subject.settings, [cut.block for cut in cuts]
        allowed = settings.blocks is None or set(blocks) <= set(settings.blocks)
        few = settings.most_blocks is None or len(blocks) <= settings.most_blocks
        return allowed and few and not any(cut.choice.is_random for cut in cuts)

    def best(self, budget: float, drawn: int, rounds: int) -> list[Judged]:
        """The best schedules found at a cost; none if none meets it."""
        proposals = self.proposals(budget, drawn)
        if not proposals:
            return []
        batches = len(self.subject.choosing)
        self.subject.phase("judging schedules", math.ceil(len(proposals) * batches * 0.6))
        best = self.search.race(proposals)
        self.subject.phase("refining", math.ceil(rounds * CHILDREN * batches * 0.4))
        return self.search.refine(best, budget, rounds, CHILDREN)

    def _within(self, budget: float) -> Cuts:
        self._refuse(budget)
        found = self.best(budget, *self._amounts())
        for one in found:
            met = self.spending.met_exactly(one.cuts, budget)
            if met is not None:
                return met
        raise self._unmet(budget)

    def _fast(self, budget: float) -> Cuts:
        """As `_within`, for measured times: what misses the budget when it is measured is sought at a lower one."""
        self._refuse(budget)
        allowed, taken = budget, math.inf
        for attempt in range(TRIES):
            drawn, rounds = self._amounts()
            found = self.best(allowed, drawn if attempt == 0 else 0, rounds if attempt == 0 else rounds // 3)
            if not found:
                break
            cuts = found[0].cuts
            taken = self.spending.exact(cuts)
            if taken <= budget:
                return cuts
            allowed *= 0.99 * budget / taken
        raise self._unmet(budget)

    def _close(self, drop: float) -> tuple[Cuts, float]:
        """The least cost at which the mean loss is at most `drop`: by bisection, then refined, then scaled down."""
        self._refuse_drop(drop)
        dense, low, high = self.spending.dense, 0.0, 0.97
        drawn, rounds = self._amounts()
        last: list[Judged] = []
        share = 0.5
        for _ in range(TRIES):
            found = self.best(share * dense, drawn // 3, 0)
            if found and found[0].loss <= drop:
                high, last = share, found
            else:
                low = share
            share = (low + high) / 2
        last = last or self.best(high * dense, drawn // 3, 0)
        if not last or last[0].loss > drop:
            raise BudgetError(
                f"drop must be one that some setting meets, but at {high:.0%} of the dense model's cost the loss is "
                f"{last[0].loss:.3g} already, and {drop:g} is allowed."
                if last
                else "no setting could be judged."
            )
        cuts = self.search.refine(last, high * dense, rounds, CHILDREN)[0].cuts
        low = 0.0
        best, cost = cuts, self.spending.of(cuts)
        low, top = 0.6 * cost, cost
        for _ in range(TRIES):
            middle = (low + top) / 2
            met = self.spending.met(cuts, middle)
            if met is not None and self.judge.loss(config_of(met), self.subject.choosing) <= drop:
                best, top = met, middle
            else:
                low = middle
        return best, self.spending.exact(best)

    def _amounts(self) -> tuple[int, int]:
        return round(DRAWN * self.effort), round(ROUNDS * self.effort)

    def _refuse(self, budget: float) -> None:
        if budget >= self.spending.dense:
            raise BudgetError(
                f"the budget must be below the dense model's {self.spending.text(self.spending.dense)}, but got "
                f"{self.spending.text(budget)}; it needs no pruning."
            )

    def _refuse_drop(self, drop: float) -> None:
        """Raise BudgetError for a loss that is allowed although chance and the lowest rates lose no more."""
        blocks = self.sensitivities.blocks[: self.subject.settings.most]
        least = tuple(Cut(block, FLOOR, LEAST_RATE) for block in blocks)
        loss = self.judge.loss(config_of(least), self.subject.choosing)
        if drop >= loss:
            raise BudgetError(
                f"drop must be less than {loss:.3g}, which is lost where chance leaves {LEAST_RATE:.0%} of the patches "
                f"at block {blocks[0]}, but got {drop:g}; every setting meets that: ask for less, or give gflops."
            )

    def _unmet(self, budget: float) -> BudgetError:
        return BudgetError(
            f"the budget must be one that some setting meets, but got {self.spending.text(budget)}, and no pruning of "
            f"{self.subject.settings.most} blocks at most of {self.sensitivities.blocks} does; allow a larger one, or "
            "more or earlier blocks."
        )


def tried(search: Search, sensitivities: Sensitivities) -> dict[Cuts, float]:
    """The schedules judged together whose single blocks were all measured."""
    known = sensitivities.knows
    return {cuts: loss for cuts, loss in search.tried.items() if all(known(cut.block, cut.choice) for cut in cuts)}
