"""A study whose database is locked or damaged: no result is lost for it, and what is wrong is told in a line."""

import json
import sqlite3
import threading

import pytest
from test_search_study import POINTS, completed, expected, opened, score
from typer.testing import CliRunner

from entropatch.cli import app
from entropatch.records.owner import this_process
from entropatch.search import StudyMismatchError, StudyUnreachableError, patience, report
from entropatch.search.noted import noted_rates
from entropatch.search.patience import Patience
from entropatch.search.points import Point
from entropatch.search.study import (
    RECORD,
    damaged_trials,
    enqueue,
    open_storage,
    open_study,
    point_of,
    quiet,
    sqlite_address,
    to_enqueue,
)
from entropatch.search.worker import Worker, standing

optuna = pytest.importorskip("optuna")
pytest.importorskip("matplotlib")
from optuna.trial import TrialState  # noqa: E402

# Trials are made here without running them.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used")


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(patience, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.1)


class Lock:
    """Another program that holds the database, for so many seconds or until it is told."""

    def __init__(self, folder, seconds=None):
        self.connection = sqlite3.connect(folder / "search.db", isolation_level=None, check_same_thread=False)
        self.connection.execute("BEGIN EXCLUSIVE")
        if seconds is not None:
            threading.Timer(seconds, self.free).start()

    def free(self):
        self.connection.execute("ROLLBACK")
        self.connection.close()


def study_of(folder, said):
    return open_study(
        open_storage(sqlite_address(folder / "search.db"), 1, 60, said.append), "search", {"scope": "free"}, {}
    )


def test_a_database_that_is_locked_while_trials_end_loses_none_of_them(tmp_path):
    said, tried = [], []
    study = study_of(tmp_path, said)

    def measure(point):
        tried.append(point)
        if point in POINTS[1:3]:
            Lock(tmp_path, 0.6)  # which outlasts the trial
        return score(point)

    assert Worker(study, POINTS, measure).run() == 5
    assert completed(opened(tmp_path, compared={"scope": "free"})) == expected()
    assert tried == POINTS  # none twice
    assert len(said) >= 4  # more where a busy machine makes its own two threads wait for each other
    assert set(said[1::2]) == {"the study's database answers again"}
    assert all("cannot be reached, database is locked: waiting" in line for line in said[::2])


def test_a_database_that_stays_locked_is_one_line_and_the_search_can_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.3)
    study, locks = study_of(tmp_path, []), []

    def measure(point):
        if point == POINTS[1]:
            locks.append(Lock(tmp_path))
        return score(point)

    with pytest.raises(StudyUnreachableError, match=r"not be reached for 0\.3 s: database is locked") as caught:
        Worker(study, POINTS, measure).run()
    assert "\n" not in str(caught.value)
    locks[0].free()
    study = opened(tmp_path, compared={"scope": "free"})
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # as its death is found out, were it another process
    assert Worker(study, POINTS, score).run() == 4
    assert completed(study) == expected()


def test_a_beat_that_a_lock_swallows_does_not_end_the_beating(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)
    study = study_of(tmp_path, [])
    trial = study.ask()
    lock = Lock(tmp_path)
    study._storage.record_heartbeat(trial._trial_id)  # an error would end Optuna's thread
    lock.free()
    study._storage.record_heartbeat(trial._trial_id)
    with sqlite3.connect(tmp_path / "search.db") as database:
        assert database.execute("SELECT count(*) FROM trial_heartbeats").fetchall() == [(1,)]


def test_a_locked_report_is_a_line_of_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.2)
    study_of(tmp_path, [])
    lock = Lock(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    from importlib import import_module

    import_module("entropatch.cli.search")
    shown = CliRunner().invoke(app, ["search", "--report", "--output", str(tmp_path)])
    lock.free()
    assert shown.exit_code == 2
    assert "database is locked" in shown.output
    assert "Traceback" not in shown.output


def test_what_is_no_lock_is_not_waited_for():
    def broken():
        calls.append(1)
        raise optuna.exceptions.StorageInternalError("bad data") from sqlite3.OperationalError("no such table")

    calls = []
    with pytest.raises(optuna.exceptions.StorageInternalError):
        Patience(calls.append).insist(broken)
    assert calls == [1]


# ------------------------------------------------------------------------------------------------ damaged records

WHOLE = {"scope": "training-free", "model": {"name": "m"}, "data": {"name": "d"}, "blocks": None}
WHOLE |= {"target_gflops": None, "target_speedup": None}
FULL = score(POINTS[1])


def searched(folder, record):
    """A finished study of two settings, one of which has this record."""
    study = open_study(open_storage(sqlite_address(folder / "search.db"), 1, 4), "search", WHOLE, {"weights": None})
    enqueue(study, POINTS[:2])
    for point, found in ((POINTS[0], score(POINTS[0]) | {"p50_ms": 1.0}), (POINTS[1], record)):
        trial = study.ask()
        assert trial.user_attrs["method"] == point.method
        if found != "missing":
            trial.set_user_attr(RECORD, found)
        study.tell(trial, 50.0)
    return study


def tried_methods(folder):
    return [record["method"] for record in json.loads((folder / "search.json").read_text())["records"]]


@pytest.mark.parametrize("record", [{}, "missing"])
def test_a_damaged_record_is_left_out_of_the_report_and_told_of_and_tried_again(tmp_path, record):
    study, said = searched(tmp_path, record), []
    report(tmp_path, on_text=said.append)
    assert len(said) == 1
    assert "trial 1, evit-0.7-seed-0, is left out, since its record is damaged" in said[0]
    assert tried_methods(tmp_path) == ["dense"]
    assert Worker(study, POINTS[:2], score).run() == 1
    report(tmp_path)
    assert tried_methods(tmp_path) == ["dense", "evit"]


@pytest.mark.parametrize(
    "record", [{}, None, [], 3, "missing", "text", {"top1": None}, *({**FULL, name: "x"} for name in FULL)], ids=repr
)
def test_a_setting_with_a_damaged_record_is_not_finished(tmp_path, record):
    trials = searched(tmp_path, record).get_trials()
    assert len(damaged_trials(trials)) == 1
    assert to_enqueue(trials, POINTS[:2], 10) == [POINTS[1]]
    assert standing(trials, POINTS[:2], 10).finished == 1


def test_whole_records_are_not_told_of(tmp_path):
    study = searched(tmp_path, score(POINTS[1]))
    assert damaged_trials(study.get_trials()) == []


@pytest.mark.parametrize("settings", [None, [], {}, {"scope": 3}, WHOLE | {"model": None}, WHOLE | {"data": {}}])
def test_a_study_without_a_search_s_settings_is_refused_by_name(tmp_path, settings):
    searched(tmp_path, score(POINTS[1])).set_user_attr("settings", settings)
    with pytest.raises(StudyMismatchError, match="'search' was not made by `entropatch search`, or its settings"):
        report(tmp_path)


@pytest.mark.parametrize(
    "attributes",
    [
        {"method": "best"},
        {"method": 3},
        {"keep_rate": "half"},
        {"keep_rate": 7.0},
        {"keep_rate": None},
        {"seed": 0.5},
        {"method": "dense"},
    ],
)
def test_a_trial_that_names_no_setting_came_from_elsewhere(tmp_path, attributes):
    study = searched(tmp_path, score(POINTS[1]))
    trial = study.get_trials()[1]
    trial.user_attrs = trial.user_attrs | attributes
    assert point_of(trial) is None
    assert isinstance(point_of(study.get_trials()[1]), Point)


@pytest.mark.parametrize("noted", [None, [], {"evit": {}}, {"evit": {"keep_rate": "half"}}, {"evit": 3}], ids=repr)
def test_a_damaged_note_of_what_meets_the_budget_is_found_anew(tmp_path, noted):
    study = searched(tmp_path, FULL)
    study.set_user_attr("keep_rates", noted)
    assert noted_rates(study) == {}
    study.set_user_attr("keep_rates", {"evit": {"keep_rate": 0.5}, "shannon": {}})
    assert noted_rates(study) == {"evit": {"keep_rate": 0.5}}


@pytest.mark.parametrize("worker", [3, "me", {}, {"pid": None}, {"pid": 10**30}, {"pid": -1}, {"pid": "1"}], ids=repr)
def test_a_claim_whose_worker_is_damaged_is_taken_back_as_a_nameless_one(tmp_path, worker):
    study = study_of(tmp_path, [])
    enqueue(study, POINTS[:1])
    trial = study.get_trials()[0]
    assert study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    named = isinstance(worker, dict)
    study._storage.set_trial_user_attr(trial._trial_id, "worker", this_process() | worker if named else worker)
    done = Worker(study, POINTS[:1], score, grace=0.1, wait=False).run()
    assert done == 0  # nobody knows that its worker is dead, so another may still work on it
    if not named:
        patient = Worker(study, POINTS[:1], score, poll=0.02, grace=0.1)
        assert patient.run() == 1
