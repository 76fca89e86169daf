"""Several runs of one setting that differ in their seed: mean, spread and best."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from entropatch.records.correct import CorrectImages, aligned, read_correct, same_images
from entropatch.records.uncertainty import accuracy
from entropatch.train.fine_tuning import Outcome


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Mean and sample standard deviation over the runs, and the best run.

    Returns:
        runs; top1_mean, top1_std, top5_mean, top5_std after the last epoch (std None for one run); top1_best and
        top5_best, the highest that any run reached after any epoch, chosen on the test set; top1_se, the standard error
        of the mean over images and seeds, from the runs' correct.json (None where one has none, or other images).

    Raises:
        ValueError: no runs; a correct.json that is damaged.
    """
    if not outcomes:
        raise ValueError("a summary needs at least one outcome, but got none.")
    record: dict[str, Any] = {"runs": len(outcomes)}
    for name in ("top1", "top5"):
        values = [getattr(outcome, name) for outcome in outcomes]
        record[f"{name}_mean"] = statistics.fmean(values)
        record[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        record[f"{name}_best"] = max(getattr(outcome, f"best_{name}") for outcome in outcomes)
    record["top1_se"] = _standard_error([read_correct(outcome.folder) for outcome in outcomes])
    return record


def _standard_error(runs: Sequence[CorrectImages | None]) -> float | None:
    found = [run for run in runs if run is not None]
    if len(found) < len(runs) or not same_images(found):
        return None
    (correct,) = aligned(found)
    return accuracy(correct if len(correct) > 1 else correct[0], resamples=0).standard_error
