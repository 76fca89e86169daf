"""What the trials of a study say: a record of each, and a summary of each method at each keep rate, over its seeds."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from entropatch.config import PruneConfig
from entropatch.look.naming import pruning_label, rates_text
from entropatch.methods import DENSE, find_method
from entropatch.records.correct import CorrectImages, aligned, same_images
from entropatch.records.uncertainty import Estimate, accuracy, binomial, paired_difference, unpaired_difference
from entropatch.search.method_table import refuse_unknown
from entropatch.search.points import Point, blocks_text
from entropatch.search.study import ABOUT, CORRECT, ERROR, RECORD, is_live, trials_by_point

if TYPE_CHECKING:
    from optuna import Study

OWN = "own"  # in place of a keep rate, of what takes none


@dataclass(frozen=True)
class Summary:
    """One method at one keep rate and one set of blocks, or one setting given as a whole, over its seeds.

    Attributes:
        method, label, keep_rate, blocks, setting: as in `Point`; dense has no keep rate.
        runs, expected: trials finished, and how many there are to be.
        top1, top1_std: mean in percent, and sample standard deviation; None for one run.
        gflops: 10⁹ multiply-adds per image.
        vs_dense: images/s over those of the dense model timed in turns with it, mean over the runs.
        estimate: top-1 with its standard error: over images and seeds where it is known which images came out right,
            else the binomial one of a single run; None where not even the number of images is known.
        correct: which images came out right, by seed; empty in studies of versions that did not note it.
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
    estimate: Estimate | None = field(default=None, compare=False, repr=False)
    correct: Mapping[int, CorrectImages] = field(default_factory=dict, compare=False, repr=False)
    blocks: tuple[int, ...] | None = None
    setting: PruneConfig | None = None

    @property
    def point(self) -> Point:
        """What was tried, whatever the seed."""
        return Point(self.method, self.keep_rate, 0, self.blocks, setting=self.setting)

    @property
    def setting_label(self) -> str:
        """The label without blocks."""
        return self.label if self.blocks is None else self.point.setting_label

    @property
    def rates_text(self) -> str:
        """Its keep rate, or one for each block, or that it has none."""
        if self.setting is None:
            return OWN if self.keep_rate is None else f"{self.keep_rate:.6g}"
        return rates_text(self.setting.keep_rate) if self.setting.schedule.uses_keep_rate else OWN

    @property
    def order(self) -> float | None:
        """Of the entropy; None for a method that uses none."""
        return self.point.order

    @property
    def drops_by_entropy(self) -> bool:
        """Whether it is one of the orders of the paper's method."""
        return self.setting is None and self.method != DENSE and find_method(self.method).drops_by_entropy

    @property
    def is_random(self) -> bool:
        """Whether chance says which patches stay."""
        return self.point.is_random

    def less(self, other: Summary) -> Estimate | None:
        """The paired difference in top-1 to another setting, on the same images and seeds; a setting of one seed is
        compared with every seed of the other. None where it is not known which images came out right."""
        seeds = [seed for seed in self.correct if seed in other.correct]
        both = [[one.correct[seed] for seed in seeds] for one in (self, other)]
        if 1 in (len(self.correct), len(other.correct)):
            both = [list(one.correct.values()) for one in (self, other)]
        if not (both[0] and both[1] and same_images([*both[0], *both[1]])):
            return None
        first, second = aligned(*both)
        return paired_difference(first, second) if first.shape[1] > 1 else None

    def less_unpaired(self, other: Summary) -> Estimate | None:
        """The difference as far as the errors of both tell; None where they are not known."""
        if self.estimate is None or other.estimate is None:
            return None
        return unpaired_difference(self.estimate, other.estimate)


def records_of(study: Study) -> list[dict[str, Any]]:
    """One record per finished trial, by method and keep rate as they were asked for: trial, method, label, order,
    keep_rate, seed, blocks and setting where they are its own, and what `Experiment.measure` returned, but which images
    came out right.

    Raises:
        ValueError: the study has a method of a module that was not imported.
    """
    return [record for _, record in points_and_records(study)]


def points_and_records(study: Study) -> list[tuple[Point, dict[str, Any]]]:
    """`records_of`, each with the setting that was tried."""
    from optuna.trial import TrialState

    study_trials = study.get_trials(deepcopy=False)
    refuse_unknown(study, study_trials)
    found: list[tuple[Point, dict[str, Any]]] = []
    for point, trials in trials_by_point(study_trials).items():
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if complete:  # should a setting ever be complete twice, the first counts
            head = {"trial": complete[0].number, "method": point.method, "label": point.label, "order": point.order}
            head |= {"keep_rate": point.keep_rate, "seed": point.seed}
            head |= {} if point.blocks is None else {"blocks": blocks_text(point.blocks)}
            head |= {} if point.setting is None else {"setting": pruning_label(point.setting)}
            head |= {} if point.setting is None else {"keep_rates": rates_text(point.setting.keep_rate)}
            measured = {key: value for key, value in complete[0].user_attrs[RECORD].items() if key != CORRECT}
            found.append((point, head | measured))
    return sorted(found, key=lambda pair: (pair[0].sort_key, pair[0].seed))


def correct_of(study: Study) -> dict[Point, CorrectImages]:
    """Which images came out right in each finished trial that notes it soundly; each under the point's name."""
    found: dict[Point, CorrectImages] = {}
    for point, trials in sorted(
        trials_by_point(study.get_trials(deepcopy=False)).items(), key=lambda pair: (pair[0].sort_key, pair[0].seed)
    ):
        noted = next(
            (trial.user_attrs[RECORD].get(CORRECT) for trial in trials if trial.state.name == "COMPLETE"), None
        )
        try:
            one = CorrectImages.from_dict(noted)
        except ValueError:  # of an older version, or damaged
            continue
        if len(one.correct) == 1:
            found[point] = CorrectImages(one.listing, one.tested, {point.name: next(iter(one.correct.values()))})
    return found


def failures_of(study: Study) -> dict[Point, str]:
    """The settings that have failed and are neither finished nor waiting to be tried again, with the last reason."""
    failed = {}
    for point, trials in trials_by_point(study.get_trials(deepcopy=False)).items():
        reasons = [trial.user_attrs.get(ERROR, "its worker died") for trial in trials if trial.state.name == "FAIL"]
        if reasons and not any(map(is_live, trials)):
            failed[point] = reasons[-1]
    return failed


def summaries_of(study: Study) -> list[Summary]:
    """The records of each setting, whatever the seed, as one."""
    expected = Counter(replace(point, seed=0) for point in trials_by_point(study.get_trials(deepcopy=False)))
    groups: dict[Point, list[dict[str, Any]]] = {}
    for point, record in points_and_records(study):
        groups.setdefault(replace(point, seed=0), []).append(record)
    found = []
    correct = correct_of(study)
    for one, records in groups.items():
        own = {point.seed: run for point, run in correct.items() if replace(point, seed=0) == one}
        own = own if len(own) == len(records) and same_images(list(own.values())) else {}
        top1 = [record["top1"] for record in records]
        found.append(
            Summary(
                one.method,
                one.label,
                one.keep_rate,
                runs=len(records),
                expected=expected[one],
                top1=statistics.fmean(top1),
                top1_std=statistics.stdev(top1) if len(top1) > 1 else None,
                gflops=statistics.fmean(record["gflops"] for record in records),
                vs_dense=statistics.fmean(record["vs_dense"] for record in records),
                estimate=_estimate(own, statistics.fmean(top1), _tested(study, records)),
                correct=own,
                blocks=one.blocks,
                setting=one.setting,
            )
        )
    return found


def _estimate(correct: Mapping[int, CorrectImages], top1: float, images: int | None) -> Estimate | None:
    (bits,) = aligned(list(correct.values())) if correct else (None,)
    if bits is not None and bits.shape[1] > 1:
        return accuracy(bits if len(bits) > 1 else bits[0])
    return binomial(round(top1 * images / 100), images) if images and 0 <= top1 <= 100 else None


def _tested(study: Study, records: list[dict[str, Any]]) -> int | None:
    """How many images a trial was tested on, from what the study says of its data."""
    listed = re.search(r"(\d+) for testing", str(study.user_attrs.get(ABOUT, {}).get("images", "")))
    damaged = records[0].get("damaged", 0)
    if listed is None or not isinstance(damaged, int) or int(listed[1]) <= damaged:
        return None
    return int(listed[1]) - damaged
