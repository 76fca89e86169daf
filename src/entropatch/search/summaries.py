"""What the trials of a study say: a record of each, and a summary of each method at each keep rate, over its seeds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entropatch.measure.variants import Variant
from entropatch.methods import DENSE, find_method
from entropatch.search.method_table import refuse_unknown
from entropatch.search.points import Point
from entropatch.search.study import ERROR, RECORD, is_live, trials_by_point

if TYPE_CHECKING:
    from optuna import Study


@dataclass(frozen=True)
class Summary:
    """One method at one keep rate, over its seeds.

    Attributes:
        method, label, keep_rate: as in `Point`; dense has no keep rate.
        runs, expected: trials finished, and how many there are to be.
        top1, top1_std: mean in percent, and sample standard deviation; None for one run.
        gflops: 10⁹ multiply-adds per image.
        vs_dense: images/s over those of the dense model timed in turns with it, mean over the runs.
    """

    method: str
    label: str
    keep_rate: float | None
    runs: int
    expected: int
    top1: float
    top1_std: float | None
    gflops: float
    vs_dense: float

    @property
    def order(self) -> float | None:
        """Of the entropy; None for a method that uses none."""
        return Variant(self.method).order

    @property
    def drops_by_entropy(self) -> bool:
        """Whether it is one of the orders of the paper's method."""
        return self.method != DENSE and find_method(self.method).drops_by_entropy

    @property
    def is_random(self) -> bool:
        """Whether chance says which patches stay."""
        return self.method != DENSE and find_method(self.method).is_random


def records_of(study: Study) -> list[dict[str, Any]]:
    """One record per finished trial, by method and keep rate as they were asked for: trial, method, label, order,
    keep_rate, seed and what `Experiment.measure` returned.

    Raises:
        ValueError: the study has a method of a module that was not imported.
    """
    from optuna.trial import TrialState

    study_trials = study.get_trials(deepcopy=False)
    refuse_unknown(study, study_trials)
    found: list[tuple[Point, dict[str, Any]]] = []
    for point, trials in trials_by_point(study_trials).items():
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if complete:  # should a setting ever be complete twice, the first counts
            head = {"trial": complete[0].number, "method": point.method, "label": point.label, "order": point.order}
            head |= {"keep_rate": point.keep_rate, "seed": point.seed}
            found.append((point, head | complete[0].user_attrs[RECORD]))
    return [record for _, record in sorted(found, key=lambda pair: (pair[0].sort_key, pair[0].seed))]


def failures_of(study: Study) -> dict[Point, str]:
    """The settings that have failed and are neither finished nor waiting to be tried again, with the last reason."""
    failed = {}
    for point, trials in trials_by_point(study.get_trials(deepcopy=False)).items():
        reasons = [trial.user_attrs.get(ERROR, "its worker died") for trial in trials if trial.state.name == "FAIL"]
        if reasons and not any(map(is_live, trials)):
            failed[point] = reasons[-1]
    return failed


def summaries_of(study: Study) -> list[Summary]:
    """The records of each method and keep rate as one."""
    expected: dict[tuple[str, float | None], int] = {}
    for point in trials_by_point(study.get_trials(deepcopy=False)):
        key = point.method, point.keep_rate
        expected[key] = expected.get(key, 0) + 1
    groups: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for record in records_of(study):
        groups.setdefault((record["method"], record["keep_rate"]), []).append(record)
    found = []
    for (method, keep_rate), records in groups.items():
        top1 = [record["top1"] for record in records]
        found.append(
            Summary(
                method,
                records[0]["label"],
                keep_rate,
                runs=len(records),
                expected=expected[method, keep_rate],
                top1=statistics.fmean(top1),
                top1_std=statistics.stdev(top1) if len(top1) > 1 else None,
                gflops=statistics.fmean(record["gflops"] for record in records),
                vs_dense=statistics.fmean(record["vs_dense"] for record in records),
            )
        )
    return found
