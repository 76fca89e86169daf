"""The keep rate that meets a budget: in multiply-adds, counted, or in speed, measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable

GFLOPS_STEPS = 10_000  # keep rates of four decimals
SPEED_STEPS = 100  # and of two: speed cannot be told apart any finer
ROUNDS = 3


class BudgetError(ValueError):
    """No keep rate meets the budget, or every one does."""


def refuse_dense(target: float, dense: float) -> None:
    """Raise BudgetError for a budget that the dense model meets; both in 10⁹ multiply-adds per image."""
    if target >= dense:
        raise BudgetError(
            f"the budget must be below the dense model's {dense:.3f} GFLOPs, but got {target:g}; it needs no pruning."
        )


def rate_for_gflops(gflops: Callable[[float], float], dense: float, target: float, near: float | None = None) -> float:
    """The largest keep rate of four decimals whose multiply-adds are at most `target`.

    GFLOPs(ρ) never falls as ρ grows, and is a step function of it, since counts of patches are whole. So at the rate
    found one step more, which is one more patch somewhere, exceeds the target.

    Args:
        gflops: 10⁹ multiply-adds per image at a keep rate.
        dense: those of the dense model.
        target: the most there may be.
        near: a rate to begin with, such as another method's, which is often the same; found sooner then.

    Raises:
        BudgetError: the target is not below the dense model, or below what the smallest rate needs, or the rate changes
            nothing.
    """
    refuse_dense(target, dense)
    least = gflops(1 / GFLOPS_STEPS)
    if least > target:
        raise BudgetError(
            f"the budget must be one that some keep rate meets, but got {target:g} GFLOPs, and a keep rate of "
            f"{1 / GFLOPS_STEPS} still needs {least:.3f}; prune in earlier blocks, or raise it."
        )
    if gflops(1 - 1 / GFLOPS_STEPS) == least:
        raise BudgetError(
            f"a keep rate cannot be found for a budget of {target:g} GFLOPs: the method needs {least:.3f} at any, "
            "since its weights say how many patches stay; train it for that cost, and give no target."
        )
    begin = None if near is None else round(near * GFLOPS_STEPS)
    return largest(lambda rate: gflops(rate) <= target, GFLOPS_STEPS, begin) / GFLOPS_STEPS


def rate_for_speedup(
    speedup: Callable[[float], float], target: float, on_text: Callable[[str], None] = lambda text: None
) -> tuple[float, float]:
    """The largest keep rate of two decimals whose speed over dense is at least `target`, by measurement.

    The smallest rate, which is the fastest, is measured first: if even that one does not meet the target, twice, none
    does, and the rest is not tried. Each rate on the way is judged by the median of three measurements. The rate found
    is then measured afresh, since bisection prefers lucky ones, and lowered by 0.01 until a fresh measurement meets the
    target.

    Args:
        speedup: images/s at a keep rate over those of the dense model, one measurement per call, both in turns.
        target: the least it must be.
        on_text: told in a line what each rate came to.

    Returns:
        The rate, and the median of the measurement that confirmed it.

    Raises:
        BudgetError: no rate meets the target.
    """

    def measured(rate: float) -> float:
        found = statistics.median(speedup(rate) for _ in range(ROUNDS))
        on_text(f"keep rate {rate:g} gives {found:.2f} times the speed of dense; {target:g} is asked for")
        return found

    smallest = 1 / SPEED_STEPS
    best = measured(smallest)
    if best < target:
        best = max(best, measured(smallest))
    if best >= target:
        steps = largest(lambda rate: rate == smallest or measured(rate) >= target, SPEED_STEPS)
        for step in range(steps, 0, -1):
            found = measured(step / SPEED_STEPS)
            if found >= target:
                return step / SPEED_STEPS, found
            best = found
    raise BudgetError(
        f"the budget must be one that some keep rate meets, but got {target:g} times the speed of the dense model, and "
        f"the smallest keep rate, {smallest:g}, gives {best:.2f}; lower it, prune in earlier blocks, or time larger "
        "batches."
    )


def largest(meets: Callable[[float], bool], steps: int, near: int | None = None) -> int:
    """The largest i in 1 … steps - 1 with meets(i / steps), by bisection; 0 if there is none.

    `meets` holds up to some rate and not beyond. A rate of 1 is no pruning and not asked. From `near` on, the bracket
    is found by steps that grow eightfold first, so that an answer close to it takes few, and a far one few more.
    """
    low, high = 0, steps
    if near is not None and 0 < near < steps:
        upwards, step = meets(near / steps), 1
        low, high = (near, high) if upwards else (low, near)
        while high - low > step:
            middle = low + step if upwards else high - step
            met = meets(middle / steps)
            low, high = (middle, high) if met else (low, middle)
            if met != upwards:
                break
            step *= 8
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if meets(middle / steps) else (low, middle)
    return low
