"""What pruning one block alone does to the output, for every criterion, coverage, reduction and several keep rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from entropatch.calibration.judging import Judge
from entropatch.calibration.proposal import Choice, Cut, config_of
from entropatch.criteria import Criterion, Mix, Product, Random, Renyi
from entropatch.methods import METHODS, renyi_method
from entropatch.reductions import BipartiteMerge, Drop, Fuse, Merge

RATE = 0.5  # at which all choices are compared
RATES = (0.75, 0.25)  # at which the best of a block is measured too
SIDES = (2,)
BEST = 2  # criteria of a block that are tried with coverage and merging
FLOOR = Choice(Random(0))


def offered_criteria() -> list[Criterion]:
    """The criteria of the registered methods, and the usual orders, that need no training."""
    untrained = [method for method in METHODS.values() if not method.trained]
    methods = [*untrained, *(renyi_method(order) for order in (1.0, 2.0, math.inf))]
    found = [criterion for method in methods for criterion, reduction in method.parts if reduction.needs_scores]
    return [one for one in dict.fromkeys(found) if not (isinstance(one, Random) or one.before)]


class Sensitivities:
    """Mean losses of one block pruned alone.

    Attributes:
        by: block, choice and keep rate -> loss.
    """

    def __init__(self) -> None:
        self.by: dict[tuple[int, Choice, float], float] = {}
        self._ranked: dict[int, list[Choice]] = {}
        self._points: dict[int, list[tuple[float, float]]] = {}

    def note(self, block: int, choice: Choice, rate: float, loss: float) -> None:
        """Take down what was measured."""
        self.by[block, choice, rate] = loss
        self._ranked.pop(block, None)
        self._points.pop(block, None)

    @property
    def blocks(self) -> list[int]:
        return sorted({block for block, _, _ in self.by})

    def knows(self, block: int, choice: Choice) -> bool:
        """Whether the choice was measured at that block."""
        return (block, choice, RATE) in self.by

    def ranked(self, block: int) -> list[Choice]:
        """The choices of a block but random, the best first, at the rate all were compared at."""
        if block not in self._ranked:
            found = [(loss, c) for (b, c, r), loss in self.by.items() if b == block and r == RATE and not c.is_random]
            self._ranked[block] = [choice for _, choice in sorted(found, key=lambda one: one[0])]
        return self._ranked[block]

    def loss(self, block: int, choice: Choice, share: float) -> float:
        """The loss at any share of the patches kept, between and beyond the rates measured.

        A power of -log(share) through the measured rates of the block's best choice, scaled to this one.
        """
        if share >= 1:
            return 0.0
        best = self.ranked(block)[0]
        if block not in self._points:
            own = [(r, loss) for (b, c, r), loss in self.by.items() if (b, c) == (block, best)]
            self._points[block] = sorted((-math.log(r), max(loss, 1e-9)) for r, loss in own)
        scale = max(self.by[block, choice, RATE], 1e-9) / max(self.by[block, best, RATE], 1e-9)
        return scale * _interpolated(self._points[block], -math.log(share))


def _interpolated(points: Sequence[tuple[float, float]], x: float) -> float:
    """Linear in the logarithms, beyond the ends along the nearest piece; never falling."""
    if len(points) == 1:
        (x0, y0), power = points[0], 1.5
    else:
        i = next((i for i in range(1, len(points)) if x <= points[i][0]), len(points) - 1)
        (x0, y0), (x1, y1) = points[i - 1], points[i]
        power = min(max(math.log(y1 / y0) / math.log(x1 / x0), 0.3), 4.0)
    return y0 * (x / x0) ** power


def single_passes(blocks: Sequence[int], criteria: Sequence[Criterion]) -> int:
    """About how many passes of a batch `measured` makes, for progress bars."""
    return len(blocks) * (len(criteria) + 3 + 3 * (BEST + 1) + len(RATES))


def measured(
    judge: Judge,
    blocks: Sequence[int],
    criteria: Sequence[Criterion],
    batches: Sequence[int],
    takes: Callable[[Choice], bool],
) -> Sensitivities:
    """Each block pruned alone: first every criterion, then mixtures, coverage and reductions of the best, then rates.

    Args:
        judge: what tells the losses.
        blocks: 0-based.
        criteria: as of `offered_criteria`.
        batches: which of the judge's batches.
        takes: whether the model takes a choice; others are left out.
    """
    found = Sensitivities()

    def look(block: int, choice: Choice, rate: float = RATE) -> None:
        if (block, choice, rate) not in found.by and takes(choice):
            found.note(block, choice, rate, judge.loss(config_of((Cut(block, choice, rate),)), batches))

    for block in blocks:
        for choice in (FLOOR, *map(Choice, criteria), Choice(Renyi(), BipartiteMerge())):
            look(block, choice)
        best = [choice.criterion for choice in found.ranked(block) if choice.reduction == Drop()][:BEST]
        if len(best) == 2 and not any(isinstance(criterion, (Mix, Product)) for criterion in best):
            mixed = Choice(Mix(best[0], best[1]))
            look(block, mixed)
            best = [mixed.criterion, *best] if found.ranked(block)[0] == mixed else best
        for criterion in best:
            look(block, Choice(criterion, Merge()))
            for side in SIDES:
                look(block, Choice(criterion, Drop(), side))
                look(block, Choice(criterion, Merge(), side))
        look(block, Choice(best[0], Fuse()))
        for rate in RATES:
            look(block, found.ranked(block)[0], rate)
    return found
