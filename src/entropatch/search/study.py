"""The Optuna study of a search: opening it, its settings, and which settings are still to be tried.

Its trials are the only record of what is done. A setting is tried by one trial at a time and finished once:

- a trial waits in the queue, is claimed by one worker (the database sees to that), runs, and is complete or failed;
- a setting with no trial that waits, runs or is complete is put into the queue, whatever became of its earlier ones;
- should two trials of one setting get into the queue at once, the younger gives way to the elder when it is claimed.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropatch.extras import require
from entropatch.methods import DENSE, is_known
from entropatch.search.points import Point
from entropatch.train.run_folder import differences

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

SETTINGS, KEPT_RATES, ABOUT, METHODS = "settings", "keep_rates", "about", "methods"
FREE = ("data.root",)  # not compared: data may have moved
RECORD, WORKER, ERROR, GIVEN_UP, STOPPED = "record", "worker", "error", "given_up", "stopped"


class StudyMismatchError(ValueError):
    """The study has other settings."""


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's own messages off inside: this package tells what happens."""
    optuna = require("optuna", "search")
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def sqlite_address(path: str | Path) -> str:
    """The address of an SQLite file. Raises ValueError for a path that no such address can hold."""
    text = str(Path(path).absolute())
    if "?" in text:
        raise ValueError(f"the path of an SQLite file may not contain a question mark, but got {text}.")
    return "sqlite:///" + text.replace("{", "{{").replace("}", "}}")  # Optuna takes addresses for templates


def open_storage(address: str, heartbeat: int = 20, grace: int = 120) -> RDBStorage:
    """The database, its tables made if there are none.

    Args:
        address: sqlite:///…, postgresql://… or mysql://…, as SQLAlchemy takes it.
        heartbeat: a worker says every so many seconds that it lives.
        grace: a worker that has not for so many seconds is taken for dead.

    Raises:
        ValueError: it cannot be opened; ImportError: the driver of that database is not installed.
    """
    optuna = require("optuna", "search")
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    lite = address.startswith("sqlite")
    arguments: dict[str, Any] = {"connect_args": {"timeout": 60}} if lite else {"pool_pre_ping": True}
    failures = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
    for attempt in range(8):
        try:
            storage = optuna.storages.RDBStorage(
                address, engine_kwargs=arguments, heartbeat_interval=heartbeat, grace_period=grace
            )
            break
        except (ArgumentError, NoSuchModuleError) as error:
            raise ValueError(f"a storage is an address such as postgresql://user@host/name: {error}") from error
        except failures as error:
            # Two workers that make the tables at once trip over each other; the later finds them made.
            if attempt == 7:
                raise ValueError(f"the storage could not be opened: {_first_line(error)}") from error
            time.sleep(0.1 * 2**attempt)
        except ImportError as error:
            raise ImportError(
                f"the driver of {address.partition(':')[0]} is not installed: {error.__cause__ or error}; install it "
                "(psycopg for postgresql+psycopg://…, pymysql for mysql+pymysql://…)."
            ) from error
    else:
        raise AssertionError
    if lite:
        _lock_when_reading(storage.engine)
    return storage


def _lock_when_reading(engine: Any) -> None:
    """Make each SQLite transaction exclusive from its beginning.

    Optuna reads a trial's state and then sets it, under a row lock that SQLite has not: so two workers could claim one
    trial.
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # else the driver begins by itself, and only at the first change

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made before know nothing of this


def open_study(storage: RDBStorage, name: str, compared: Mapping[str, Any], about: Mapping[str, Any]) -> Study:
    """The study of that name; a new one with these settings if there is none.

    Args:
        storage: as `open_storage` gives it.
        name: of the study.
        compared: what results of one study have in common.
        about: noted for the report when the study is new.

    Raises:
        StudyMismatchError: the study is about something else; the message names each setting that differs.
    """
    import optuna

    # No parameter is ever sampled: each trial says what it is to try.
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(
        study_name=name, storage=storage, direction="maximize", sampler=sampler, load_if_exists=True
    )
    here = json.loads(json.dumps(compared))
    if SETTINGS not in study.user_attrs:
        if study.get_trials(deepcopy=False):
            raise StudyMismatchError(f"the study {name!r} was not made by `entropatch search`; give another name.")
        study.set_user_attr(ABOUT, dict(about))
        study.set_user_attr(SETTINGS, here)
    # Read again, since another worker may have made it at the same moment.
    if differ := differences(study.user_attrs[SETTINGS], here, FREE):
        raise StudyMismatchError(
            f"the study {name!r} has other settings: {'; '.join(differ)}. Give another study or output folder, or the "
            "same settings to continue it."
        )
    return study


def point_of(trial: FrozenTrial | Trial) -> Point | None:
    """The setting that a trial tries; None for a trial that came from elsewhere."""
    attributes = trial.user_attrs
    if not {"method", "keep_rate", "seed"} <= attributes.keys():
        return None
    return Point(attributes["method"], attributes["keep_rate"], attributes["seed"])


def enqueue(study: Study, points: Iterable[Point]) -> None:
    """Put settings into the queue."""
    from optuna.trial import TrialState, create_trial

    for point in points:
        values, kinds = point.parameters(method_number(study, point.family))
        study.add_trial(
            create_trial(state=TrialState.WAITING, params=values, distributions=kinds, user_attrs=point.to_dict())
        )


def method_number(study: Study, family: str) -> int:
    """The place of a method, or family of them, in the study's table of methods, which only grows.

    Should two workers lengthen it at the same moment, the last one counts and the other looks again. What a trial tries
    is known by the name in its own attributes; the number is for Optuna's plots.
    """
    while family not in (table := list(study.user_attrs.get(METHODS, ()))):
        study.set_user_attr(METHODS, [*table, family])
    return table.index(family)


def refuse_unknown(study: Study, trials: Iterable[FrozenTrial]) -> None:
    """Raise ValueError, in a line, where the study has methods of a module that was not imported."""
    names = dict.fromkeys(point.method for point in trials_by_point(trials))
    if unknown := [name for name in names if name != DENSE and not is_known(name)]:
        raise ValueError(
            f"the study {study.study_name!r} has the method{'s' * (len(unknown) > 1)} {', '.join(unknown)}, which no "
            "imported module registers; import the one that does first (on the command line: --import my_module)."
        )


def to_enqueue(trials: Iterable[FrozenTrial], points: Iterable[Point], retries: int) -> list[Point]:
    """The settings that no trial waits for, runs or has completed, and that have not been given up."""
    by_point = trials_by_point(trials)
    return [
        point
        for point in points
        if not any(is_live(trial) for trial in by_point.get(point, ()))
        and not is_given_up(by_point.get(point, ()), retries)
    ]


def is_live(trial: FrozenTrial) -> bool:
    """Whether the trial waits, runs or is complete."""
    from optuna.trial import TrialState

    return trial.state in (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)


def is_given_up(trials: Iterable[FrozenTrial], retries: int) -> bool:
    """Whether a setting, by its trials, diverged or failed more than `retries` times; a stop by hand is no failure."""
    from optuna.trial import TrialState

    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    if any(trial.user_attrs.get(GIVEN_UP) for trial in failed):
        return True
    return sum(not trial.user_attrs.get(STOPPED) for trial in failed) > retries


def trials_by_point(trials: Iterable[FrozenTrial]) -> dict[Point, list[FrozenTrial]]:
    """The trials of each setting, by number."""
    found: dict[Point, list[FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        point = point_of(trial)
        if point is not None:
            found.setdefault(point, []).append(trial)
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
