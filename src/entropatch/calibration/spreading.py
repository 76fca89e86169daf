"""ToMe's schedules as cuts: a few tokens merged in every block, equally many in each or fewer from block to block."""

from __future__ import annotations

from collections.abc import Sequence

from entropatch.calibration.proposal import Choice, Cut, Cuts
from entropatch.calibration.spending import Spending
from entropatch.criteria import Renyi
from entropatch.reductions import BipartiteMerge

MERGING = Choice(Renyi(), BipartiteMerge())  # reads no scores, so the criterion says nothing
EVEN, FALLING = "tome", "tome, falling"
LABELS = {EVEN: "ToMe", FALLING: "ToMe, fewer from block to block"}


def spread(patches: int, blocks: Sequence[int], removed: float, falling: bool) -> Cuts:
    """Cuts that remove about `removed` of the patches in these blocks; linearly fewer, down to none, with `falling`.

    In whole tokens, and in no block more than half of what is there, which is what the matching can pair.
    """
    weights = [len(blocks) - 1 - i if falling else 1 for i in range(len(blocks))]
    n, cuts, left = patches, [], 0.0
    for block, weight in zip(blocks, weights, strict=True):
        left += removed * weight / max(sum(weights), 1)
        gone = min(int(left + 0.5), n // 2)
        left -= gone
        if gone:
            # Half a token above, so that the ceiling gives the very number whatever is rounded.
            cuts.append(Cut(block, MERGING, (n - gone - 0.5) / n))
            n -= gone
    return tuple(cuts)


def spread_within(spending: Spending, budget: float, blocks: Sequence[int]) -> dict[str, Cuts]:
    """Both kinds, by `EVEN` and `FALLING`, with the fewest tokens removed that meet the budget; less those that none
    meet."""
    found: dict[str, Cuts] = {}
    for name in (EVEN, FALLING):
        low, high = 0.0, 3.0 * spending.patches
        if spending.of(spread(spending.patches, blocks, high, name == FALLING)) > budget:
            continue
        while high - low > 0.5:
            middle = (low + high) / 2
            met = spending.of(spread(spending.patches, blocks, middle, name == FALLING)) <= budget
            low, high = (low, middle) if met else (middle, high)
        if cuts := spread(spending.patches, blocks, high, name == FALLING):
            found[name] = cuts
    return found
