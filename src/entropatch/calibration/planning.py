"""Schedules under a budget from the sensitivities of single blocks, by dynamic programming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from entropatch.calibration.proposal import Choice, Cut, Cuts, rounded
from entropatch.calibration.sensitivity import Sensitivities
from entropatch.calibration.spending import Spending

LEVELS = tuple(round(0.88**i, 4) for i in range(25))  # shares of the patches, 1 … 0.047
BUCKETS = 400  # of cost, up to the budget

# From the loss of a block's choice at a share of the patches: that of going from one share to another there.
Step = Callable[[int, Choice, float, float], float]


def adding(sensitivities: Sensitivities) -> dict[str, Step]:
    """Two ways in which losses may add up.

    "fresh": a block loses what it would alone at the rate it keeps of what is present. "deeper": it loses the
    difference between both shares of all patches, as if what is gone already were what this block would drop first.
    """

    @cache
    def fresh(block: int, choice: Choice, before: float, after: float) -> float:
        return sensitivities.loss(block, choice, after / before)

    @cache
    def deeper(block: int, choice: Choice, before: float, after: float) -> float:
        loss = sensitivities.loss
        return max(loss(block, choice, after) - loss(block, choice, before), 0.1 * loss(block, choice, after / before))

    return {"fresh": fresh, "deeper": deeper}


def predicted(cuts: Sequence[Cut], step: Step) -> float:
    """The sum of the losses of single blocks."""
    total, share = 0.0, 1.0
    for cut in cuts:
        total += step(cut.block, cut.choice, share, share * cut.rate)
        share *= cut.rate
    return total


def planned(
    sensitivities: Sensitivities, spending: Spending, budget: float, step: Step, most: int, first: int | None = None
) -> Cuts | None:
    """The schedule of the least predicted loss whose cost is about the budget; None if there is none.

    Costs are counted in whole buckets, so what is found is to be put through `Spending.met`.

    Args:
        sensitivities: of single blocks.
        spending: what schedules cost.
        budget: the most there may be.
        step: one of `adding`.
        most: reducing blocks at most.
        first: the first reducing block, if it is given.
    """
    best = {block: sensitivities.ranked(block)[0] for block in sensitivities.blocks if first is None or block >= first}
    levels = range(len(LEVELS))
    size = (budget - spending.of_block(None, None)) / BUCKETS
    if size <= 0 or not best:
        return None
    spent = [[round(spending.of_block(LEVELS[i], LEVELS[j]) / size) for j in levels] for i in levels]
    # least[count, level, bucket]: the least loss of having got there; came: from which level the last block came.
    least = np.full((most + 1, len(LEVELS), BUCKETS + 1), np.inf)
    least[0, 0, 0] = 0.0
    came: list[np.ndarray] = []
    for block in range(spending.depth):
        after, source = np.full_like(least, np.inf), np.full(least.shape, -1, dtype=np.int8)
        for level in levels:
            cost = spent[level][level]
            if block != first and cost <= BUCKETS:
                _better(after[:, level], source[:, level], least[:, level], cost, 0.0, level)
            for target in range(level + 1, len(LEVELS)) if block in best else ():
                cost = spent[level][target]
                if cost > BUCKETS:
                    continue
                more = step(block, best[block], LEVELS[level], LEVELS[target])
                _better(after[1:, target], source[1:, target], least[:-1, level], cost, more, level)
        least = after
        came.append(source)
    if not np.isfinite(least[1:]).any():
        return None
    count, level, bucket = np.unravel_index(
        np.where(np.arange(most + 1)[:, None, None], least, np.inf).argmin(), least.shape
    )
    cuts: list[Cut] = []
    for block in reversed(range(spending.depth)):
        before = int(came[block][count, level, bucket])
        bucket = bucket - spent[before][level]
        if before != level:
            cuts.insert(0, Cut(block, best[block], rounded(LEVELS[level] / LEVELS[before])))
            count -= 1
        level = before
    return tuple(cuts)


def _better(after: np.ndarray, source: np.ndarray, least: np.ndarray, cost: int, more: float, level: int) -> None:
    """Take over, `cost` buckets further on, what is less than what is there; (counts, buckets) each."""
    reached = least[:, : BUCKETS + 1 - cost] + more
    place, origin = after[:, cost:], source[:, cost:]
    less = reached < place
    place[less], origin[less] = reached[less], level
