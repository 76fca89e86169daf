"""Several runs of one setting that differ in their seed: mean, spread and best."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from entropatch.train.fine_tuning import Outcome


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Mean and sample standard deviation over the runs, and the best run.

    Returns:
        runs; top1_mean, top1_std, top5_mean, top5_std after the last epoch (std None for one run); top1_best and
        top5_best, the highest that any run reached after any epoch, chosen on the test set.

    Raises:
        ValueError: no runs.
    """
    if not outcomes:
        raise ValueError("a summary needs at least one outcome, but got none.")
    record: dict[str, Any] = {"runs": len(outcomes)}
    for name in ("top1", "top5"):
        values = [getattr(outcome, name) for outcome in outcomes]
        record[f"{name}_mean"] = statistics.fmean(values)
        record[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        record[f"{name}_best"] = max(getattr(outcome, f"best_{name}") for outcome in outcomes)
    return record
