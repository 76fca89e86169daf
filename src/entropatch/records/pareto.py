"""Which of several settings are worth choosing when one wants both accuracy and speed."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Places of the points that no other point beats, in order of cost.

    Point j beats point i if cost_j ≤ cost_i and gain_j ≥ gain_i, one of them strictly. Equal points do not beat each
    other, so all of them are in or none. A point with a NaN was not measured: it is left out, and beats nothing.

    Args:
        costs: what should be low, such as GFLOPs; one number per point.
        gains: what should be high, such as top-1 accuracy; one per point. For "more images/s" as cost, give its
            negative.

    Returns:
        Places in the sequences by rising cost, which is also rising gain; equal points by place. O(N log N).

    Raises:
        ValueError: the sequences differ in length.
    """
    if len(costs) != len(gains):
        raise ValueError(f"costs and gains must be of one length, but got {len(costs)} and {len(gains)}.")
    measured = [i for i in range(len(costs)) if not (math.isnan(costs[i]) or math.isnan(gains[i]))]
    front: list[int] = []
    for i in sorted(measured, key=lambda i: (costs[i], -gains[i])):
        # Among those that cost no more, the last of the front has the highest gain.
        if not front or gains[i] > gains[front[-1]] or (costs[i], gains[i]) == (costs[front[-1]], gains[front[-1]]):
            front.append(i)
    return front
