"""A worker: takes settings from the study's queue, one at a time, until none is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entropatch.records.owner import is_dead, this_process
from entropatch.search.method_table import refuse_unknown
from entropatch.search.patience import StudyUnreachableError
from entropatch.search.points import Point
from entropatch.search.study import (
    ERROR,
    GIVEN_UP,
    RECORD,
    STOPPED,
    WORKER,
    enqueue,
    is_complete,
    is_given_up,
    is_live,
    point_of,
    to_enqueue,
    trials_by_point,
)
from entropatch.train import DivergedError
from entropatch.train.run_folder import RunBusyError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial


@dataclass(frozen=True)
class Standing:
    """How far a study is.

    Attributes:
        settings: how many there are.
        finished: of them.
        running: by some worker now.
        given_up: failed too often, or diverged.
    """

    settings: int
    finished: int
    running: int
    given_up: int


class Worker:
    """Works on a study, alone or beside others; see `entropatch.search.study` for who does what.

    Args:
        study: as `open_study` gives it.
        points: the settings to try; what waits in the queue beside them is tried too.
        measure: tries one; what it returns is recorded, and its "top1" is the value of the trial.
        retries: a setting is given up after so many failures beyond the first.
        grace: seconds after which a claim without a sign of life is taken back.
        wait: stay while others still work, to take over what they leave behind should they die.
        poll: seconds between looks at the study then.
        on_standing: called with the `Standing` before each trial, and while waiting.
    """

    study: Study
    points: Sequence[Point]
    measure: Callable[[Point], dict[str, Any]]
    retries: int
    grace: float
    wait: bool
    poll: float
    on_standing: Callable[[Standing], None]
    done: int

    def __init__(
        self,
        study: Study,
        points: Sequence[Point],
        measure: Callable[[Point], dict[str, Any]],
        *,
        retries: int = 10,
        grace: float = 120.0,
        wait: bool = True,
        poll: float = 2.0,
        on_standing: Callable[[Standing], None] = lambda standing: None,
    ):
        self.study, self.points, self.measure = study, points, measure
        self.retries, self.grace, self.wait, self.poll, self.on_standing = retries, grace, wait, poll, on_standing
        self.done = 0
        self._current: int | None = None  # the trial at work, unless it has failed by itself
        self._nameless: dict[int, float] = {}  # claims whose worker is unknown, and since when
        self._busy: dict[Point, float] = {}  # settings whose folder another process holds, and since when

    def run(self, limit: int | None = None) -> int:
        """Try settings until none is left, or `limit` of them. Returns how many this worker tried.

        Raises:
            ValueError: the study has a method of a module that was not imported here. And
            whatever a setting raised; its trial is marked as failed with the reason, and will be tried again. A setting
            that diverged is given up instead, and the work goes on.
        """
        import optuna
        from optuna.trial import TrialState

        while limit is None or self.done < limit:
            optuna.storages.fail_stale_trials(self.study)
            self._fail_dead()
            trials = self.study.get_trials(deepcopy=False)
            refuse_unknown(self.study, trials)  # others may have added some
            self.on_standing(standing(trials, self.points, self.retries))
            missing = to_enqueue(trials, self.points, self.retries)
            free = [point for point in missing if not self._is_busy(point)]
            if any(trial.state == TrialState.WAITING for trial in trials):
                self._try_one()
            elif free:
                enqueue(self.study, free)
            elif self.wait and (missing or any(trial.state == TrialState.RUNNING for trial in trials)):
                time.sleep(self.poll)
            else:
                break
        self.on_standing(standing(self.study.get_trials(deepcopy=False), self.points, self.retries))
        return self.done

    def _try_one(self) -> None:
        self._current = None
        try:
            self.study.optimize(self._objective, n_trials=1, catch=(DivergedError,))
        except Exception as error:
            # Where even the state of the trial cannot be read, Optuna trips over a variable it has not set.
            if (away := _unreachable_within(error)) is not None:
                raise away from error
            # While this process was held up, another took it for dead and its setting over: that one's result counts.
            if self._current is None or not self._is_finished(self._current):
                raise

    def _objective(self, trial: Trial) -> float:
        import optuna

        self._current = trial.number
        point = point_of(trial)
        if point is None:
            raise optuna.TrialPruned("the queue was empty")
        trial.set_user_attr(WORKER, this_process())
        if self._has_elder(point, trial.number):
            raise optuna.TrialPruned("an elder trial tries the same setting")
        self.done += 1
        try:
            record = self.measure(point)
        except RunBusyError:
            self.done -= 1
            self._busy[point] = time.monotonic()
            raise optuna.TrialPruned("another process trains into its folder") from None
        except BaseException as error:
            if not self._is_finished(trial.number):
                stopped = isinstance(error, KeyboardInterrupt)
                trial.set_user_attr(STOPPED if stopped else ERROR, stopped or f"{type(error).__name__}: {error}")
                if isinstance(error, DivergedError):
                    trial.set_user_attr(GIVEN_UP, True)
                self._current = None
            raise
        trial.set_user_attr(RECORD, record)
        return record["top1"]

    def _is_finished(self, number: int) -> bool:
        trials = self.study.get_trials(deepcopy=False)
        return any(trial.number == number and trial.state.is_finished() for trial in trials)

    def _has_elder(self, point: Point, number: int) -> bool:
        trials = trials_by_point(self.study.get_trials(deepcopy=False))[point]
        return any(trial.number < number and is_live(trial) for trial in trials)

    def _is_busy(self, point: Point) -> bool:
        return time.monotonic() - self._busy.get(point, -self.grace) < self.grace

    def _fail_dead(self) -> None:
        """Take back what dead workers of this machine held, and claims whose worker died before it could sign them."""
        from optuna.trial import TrialState

        now = time.monotonic()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get(WORKER)
            if not isinstance(worker, dict):
                lost = now - self._nameless.setdefault(trial.number, now) > self.grace
            else:
                lost = is_dead(worker)
            if lost:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def standing(trials: Sequence[FrozenTrial], points: Sequence[Point], retries: int) -> Standing:
    """How far a study is, from its trials and the settings that are to be tried."""
    from optuna.trial import TrialState

    by_point: dict[Point, list[FrozenTrial]] = {point: [] for point in points} | trials_by_point(trials)

    finished = sum(any(map(is_complete, own)) for own in by_point.values())
    running = sum(any(trial.state == TrialState.RUNNING for trial in own) for own in by_point.values())
    given_up = sum(not any(map(is_live, own)) and is_given_up(own, retries) for own in by_point.values())
    return Standing(len(by_point), finished, running, given_up)


def _unreachable_within(error: BaseException | None) -> StudyUnreachableError | None:
    """The StudyUnreachableError that an error is, or was raised from or during."""
    while error is not None and not isinstance(error, StudyUnreachableError):
        error = error.__cause__ or error.__context__
    return error
