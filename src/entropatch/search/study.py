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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropatch.config import PruneConfig
from entropatch.error_text import one_line
from entropatch.extras import require
from entropatch.measure.variants import takes_keep_rate
from entropatch.methods import DENSE, is_known
from entropatch.search import patience
from entropatch.search.method_table import BLOCKS, METHODS, number_of
from entropatch.search.points import Point
from entropatch.train.run_folder import differences

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

SETTINGS, ABOUT = "settings", "about"
# Not compared: data may have moved, and of weights the fingerprint is compared, not where they are.
FREE = ("data.root", "model.weights")
CORRECT = "correct"  # in a record: which images came out right
RECORD, WORKER, ERROR, GIVEN_UP, STOPPED = "record", "worker", "error", "given_up", "stopped"


NOT_OURS = "the study {!r} was not made by `entropatch search`, or its settings are damaged; give another name."
NUMBERS = ("top1", "top5", "gflops", "images_per_second", "dense_images_per_second", "vs_dense", "seconds")


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


def open_storage(
    address: str, heartbeat: int = 20, grace: int = 120, on_text: Callable[[str], None] = lambda text: None
) -> RDBStorage:
    """The database, its tables made if there are none. While it is locked or away its calls wait, for ten minutes.

    Args:
        address: sqlite:///…, postgresql://… or mysql://…, as SQLAlchemy takes it.
        heartbeat: a worker says every so many seconds that it lives.
        grace: a worker that has not for so many seconds is taken for dead.
        on_text: told in a line when it has to wait, and when it need not any more.

    Raises:
        ValueError: it cannot be opened; ImportError: the driver of that database is not installed.
        StudyUnreachableError: later, of any use of it: it was locked or away for too long.
    """
    optuna = require("optuna", "search")
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    lite = address.startswith("sqlite")
    arguments: dict[str, Any] = (
        {"connect_args": {"timeout": patience.LOCK_SECONDS}} if lite else {"pool_pre_ping": True}
    )
    failures = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
    for attempt in range(8):
        try:
            storage = patience.patient_storage(
                address, on_text, engine_kwargs=arguments, heartbeat_interval=heartbeat, grace_period=grace
            )
            break
        except (ArgumentError, NoSuchModuleError) as error:
            raise ValueError(f"a storage is an address such as postgresql://user@host/name: {error}") from error
        except failures as error:
            # Two workers that make the tables at once trip over each other; the later finds them made.
            if attempt == 7:
                where = f" {address}" if lite else ""  # other addresses may hold a password
                raise ValueError(f"the storage{where} could not be opened: {one_line(error, first=True)}") from error
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
            raise StudyMismatchError(NOT_OURS.format(name))
        study.set_user_attr(ABOUT, dict(about))
        study.set_user_attr(SETTINGS, here)
    # Read again, since another worker may have made it at the same moment.
    if differ := differences(study.user_attrs[SETTINGS], here, FREE):
        raise StudyMismatchError(
            f"the study {name!r} has other settings: {'; '.join(differ)}. Give another study or output folder, or the "
            "same settings to continue it."
        )
    return study


def check_settings(study: Study) -> None:
    """Raise StudyMismatchError unless the study holds the settings of a search, as the report reads them."""
    settings = study.user_attrs.get(SETTINGS)
    named = {"scope", "model", "data", "blocks", "target_gflops", "target_speedup"}
    if (
        not isinstance(settings, dict)
        or not named <= settings.keys()
        or not all(isinstance(settings[key], dict) and "name" in settings[key] for key in ("model", "data"))
        or not isinstance(study.user_attrs.get(ABOUT), dict)
    ):
        raise StudyMismatchError(NOT_OURS.format(study.study_name))


def point_of(trial: FrozenTrial | Trial) -> Point | None:
    """The setting that a trial tries; None for a trial that came from elsewhere."""
    method, keep_rate, seed = (trial.user_attrs.get(name) for name in ("method", "keep_rate", "seed"))
    if not isinstance(method, str) or type(seed) is not int or not (keep_rate is None or is_number(keep_rate)):
        return None
    try:
        blocks, setting = _own_parts(trial.user_attrs)
        if setting is not None:
            return None if keep_rate is not None or blocks is not None else Point(method, None, seed, setting=setting)
    except (ValueError, TypeError):  # damaged, or of a module that was not imported: see `refuse_unknown`
        return None
    if method != DENSE and not is_known(method):
        return None
    if takes_keep_rate(method) != (keep_rate is not None) or not 0 < (1 if keep_rate is None else keep_rate) <= 1:
        return None
    return Point(method, keep_rate, seed, blocks)


def _own_parts(about: Mapping[str, Any]) -> tuple[tuple[int, ...] | None, PruneConfig | None]:
    """Blocks of a trial's own, and a setting given as a whole. Raises ValueError or TypeError for damaged ones."""
    blocks, setting = about.get("blocks"), about.get("setting")
    found = None if blocks is None else PruneConfig(blocks=tuple(blocks)).blocks
    return found, None if setting is None else PruneConfig.from_json(setting)


def is_complete(trial: FrozenTrial) -> bool:
    """Whether the trial is complete and its record whole. One with a damaged record counts as not tried."""
    from optuna.trial import TrialState

    return trial.state == TrialState.COMPLETE and wrong_in(trial.user_attrs.get(RECORD)) is None


def wrong_in(record: Any) -> str | None:
    """What a record lacks of the numbers that each must have; None if nothing."""
    if not isinstance(record, dict):
        return "it is none"
    return next((f"{name} is {record.get(name)!r:.40}" for name in NUMBERS if not is_number(record.get(name))), None)


def damaged_trials(trials: Iterable[FrozenTrial]) -> list[str]:
    """A line for each complete trial whose record is damaged."""
    from optuna.trial import TrialState

    return [
        f"trial {trial.number}, {point.name}, is left out, since its record is damaged: "
        f"{wrong_in(trial.user_attrs.get(RECORD))}; a search tries that setting again"
        for trial in trials
        if (point := point_of(trial)) and trial.state == TrialState.COMPLETE and not is_complete(trial)
    ]


def is_number(value: Any) -> bool:
    """Whether it is a number that a record may hold."""
    return type(value) in (int, float) and abs(value) < 1e300


def enqueue(study: Study, points: Iterable[Point]) -> None:
    """Put settings into the queue."""
    from optuna.trial import TrialState, create_trial

    for point in points:
        place = None if point.blocks is None else number_of(study, BLOCKS, list(point.blocks))
        values, kinds = point.parameters(number_of(study, METHODS, point.family), place)
        study.add_trial(
            create_trial(state=TrialState.WAITING, params=values, distributions=kinds, user_attrs=point.to_dict())
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

    return trial.state in (TrialState.WAITING, TrialState.RUNNING) or is_complete(trial)


def is_given_up(trials: Iterable[FrozenTrial], retries: int) -> bool:
    """Whether a setting, by its trials, diverged or failed more than `retries` times; a stop by hand is no failure."""
    from optuna.trial import TrialState

    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    if any(trial.user_attrs.get(GIVEN_UP) for trial in failed):
        return True
    return sum(not trial.user_attrs.get(STOPPED) for trial in failed) > retries


def trials_by_point(trials: Iterable[FrozenTrial]) -> dict[Point, list[FrozenTrial]]:
    """The trials of each setting, by number; without complete ones whose record is damaged."""
    from optuna.trial import TrialState

    found: dict[Point, list[FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        point = point_of(trial)
        if point is not None and (trial.state != TrialState.COMPLETE or is_complete(trial)):
            found.setdefault(point, []).append(trial)
    return found
