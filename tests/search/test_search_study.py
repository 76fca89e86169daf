"""The search's study: each setting tried once whoever dies, by whom it is worked on, and what is refused."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from entropatch import ClassAttention, CumulativeImportance, Merge, PruneConfig, methods
from entropatch.records.owner import is_dead, this_process
from entropatch.search.points import LARGEST_NUMBER, Point, grid, known_method
from entropatch.search.settings import SearchSettings, default_methods
from entropatch.search.study import (
    RECORD,
    WORKER,
    StudyMismatchError,
    enqueue,
    open_storage,
    open_study,
    point_of,
    quiet,
    sqlite_address,
    to_enqueue,
    trials_by_point,
)
from entropatch.search.worker import Worker, standing
from entropatch.train import DivergedError, ModelSpec
from entropatch.train.run_folder import RunBusyError

optuna = pytest.importorskip("optuna")
from optuna.distributions import CategoricalDistribution  # noqa: E402
from optuna.trial import TrialState, create_trial  # noqa: E402

COMPARED = {"scope": "training-free", "model": {"name": "test_vit"}, "data": {"name": "digits", "root": "a"}}
POINTS = [Point("dense", None, 0), *(Point(m, r, 0) for m in ("evit", "renyi-0.5") for r in (0.7, 0.3))]

fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(["training_case", "accelerate", "timm", "sklearn.datasets", "optuna", "entropatch.search"])


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


def opened(folder, name="search", compared=COMPARED, grace=4):
    server = folder / "server.txt"
    address = server.read_text() if server.exists() else sqlite_address(folder / "search.db")
    return open_study(open_storage(address, 1, grace), name, compared, {})


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def folder(request, tmp_path):
    """A folder for the files of a test; the study is in a file there, or on a PostgreSQL server that is started."""
    if request.param == "sqlite":
        yield tmp_path
        return
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL is installed")
    if shutil.which("initdb") is None or shutil.which("postgres") is None:
        pytest.skip("no PostgreSQL server is installed")
    # The server refuses to run as root, and to share its folder with others.
    user = "postgres" if os.geteuid() == 0 else None
    home = tempfile.mkdtemp(prefix="entropatch-")  # a socket's path must be short
    try:
        shutil.chown(home, user) if user else None
        quietly = {"user": user, "cwd": home, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(["initdb", "-D", f"{home}/data", "-U", "me", "--auth=trust", "-N"], check=True, **quietly)
        server = subprocess.Popen(["postgres", "-D", f"{home}/data", "-k", home, "-h", "", "-F"], **quietly)
        while not Path(home, ".s.PGSQL.5432").exists():
            assert server.poll() is None
            time.sleep(0.05)
        (tmp_path / "server.txt").write_text(f"postgresql+psycopg://me@/postgres?host={home}")
        yield tmp_path
        server.send_signal(signal.SIGINT)  # ends the connections that are still open
        server.wait()
    finally:
        shutil.rmtree(home)


def score(point):
    """An accuracy for a setting, and what else every record holds."""
    rest = dict.fromkeys(("top5", "gflops", "images_per_second", "dense_images_per_second", "vs_dense", "seconds"), 1.0)
    return {"top1": 50 + 10 * (point.keep_rate or 1) + len(point.method)} | rest


def logged(folder, seconds=0.0):
    """A measurement that writes down what it tried and who tried it."""

    def measure(point):
        with (folder / "tried.txt").open("a") as file:
            file.write(f"{point.name} {os.getpid()}\n")
        time.sleep(seconds)
        return score(point)

    return measure


def tried(folder):
    return [line.split() for line in (folder / "tried.txt").read_text().splitlines()]


def completed(study):
    """How often each setting is complete, and with which value."""
    trials = [t for t in study.get_trials() if t.state == TrialState.COMPLETE]
    return sorted((point_of(trial).name, trial.value) for trial in trials)


def expected(points=POINTS):
    return sorted((point.name, score(point)["top1"]) for point in points)


# ------------------------------------------------------------------------------------------------------- the points


def test_the_grid_is_every_method_at_each_of_its_rates_with_every_seed():
    rates = {"dense": [], "random": [0.7, 0.5], "renyi-2": [0.7]}
    names = [point.name for point in grid(rates, (0, 3), "finetuned")]
    assert names == [
        *("dense-seed-0", "dense-seed-3"),
        *("random-0.7-seed-0", "random-0.7-seed-3", "random-0.5-seed-0", "random-0.5-seed-3"),
        *("renyi-2-0.7-seed-0", "renyi-2-0.7-seed-3"),
    ]
    # Without training a seed changes nothing but what is random.
    free = [point.name for point in grid(rates, (0, 3), "training-free")]
    assert free == ["dense-seed-0", *names[2:6], "renyi-2-0.7-seed-0"]


@pytest.mark.parametrize(
    ("given", "known"),
    [("renyi-1", "shannon"), ("renyi-1.0", "shannon"), ("renyi-2.0", "renyi-2"), ("renyi-inf", "renyi-inf")],
)
def test_a_method_has_one_name(given, known):
    assert known_method(given) == known


def test_a_trial_says_what_it_tries_in_optuna_s_own_words(tmp_path):
    study = opened(tmp_path)
    enqueue(study, [*POINTS, Point("renyi-inf", 0.55, 3), Point("shannon", 0.1, 0), Point("renyi-1e-07", 0.1, 0)])
    trials = study.get_trials()
    assert [point_of(trial) for trial in trials[: len(POINTS)]] == POINTS
    table = study.user_attrs["methods"]
    assert table == ["dense", "evit", "renyi-<order>", "renyi-inf"]
    assert trials[0].params == {"method_number": 0, "seed": 0}
    assert trials[3].params == {"method_number": 2, "order": 0.5, "keep_rate": 0.7, "seed": 0}
    assert trials[5].params == {"method_number": 3, "keep_rate": 0.55, "seed": 3}
    assert trials[6].params["order"] == 1.0
    assert trials[7].params["order"] == 1e-7
    assert all(trial.distributions["method_number"].high == LARGEST_NUMBER for trial in trials)


@pytest.fixture
def key_norm(monkeypatch):
    """A registered method of a user's, and afterwards none."""
    monkeypatch.setattr(methods.METHODS, "_methods", dict(methods.METHODS._methods))
    return methods.register_method(methods.Method("key-norm", "Key norm", "", ClassAttention(), Merge(), rank=25))


def test_a_study_of_before_goes_on_with_methods_that_were_registered_since(tmp_path, key_norm):
    """Studies once had a list of choices as the parameter "method", which Optuna does not let grow."""
    study = opened(tmp_path)
    choices = CategoricalDistribution(("dense", "random", "evit", "evit-drop", "renyi", "renyi-inf"))
    for point, choice in zip(POINTS[:2], ("dense", "evit"), strict=True):
        own = {"params": {"method": choice}, "distributions": {"method": choices}, "user_attrs": point.to_dict()}
        study.add_trial(create_trial(state=TrialState.WAITING, **own))
    more = [*POINTS[:2], Point("key-norm", 0.5, 0), Point("tome", 0.5, 0)]
    assert Worker(opened(tmp_path), more, logged(tmp_path)).run() == 4
    assert completed(opened(tmp_path)) == expected(more)
    added = opened(tmp_path).get_trials()[2:]
    table = opened(tmp_path).user_attrs["methods"]
    assert [table[trial.params["method_number"]] for trial in added] == ["key-norm", "tome"]


def test_numbers_of_methods_stay_as_the_table_grows(tmp_path, key_norm):
    study = opened(tmp_path)
    enqueue(study, [Point("shannon", 0.5, 0), Point("evit", 0.5, 0)])
    study.set_user_attr("methods", [*study.user_attrs["methods"], "by another worker"])
    enqueue(study, [Point("key-norm", 0.5, 0), Point("renyi-3", 0.5, 0), Point("dense", None, 0)])
    table = study.user_attrs["methods"]
    assert table == ["renyi-<order>", "evit", "by another worker", "key-norm", "dense"]
    assert [trial.params["method_number"] for trial in study.get_trials()] == [0, 1, 3, 0, 4]
    study.set_user_attr("methods", {"damaged": 3})
    enqueue(study, [Point("evit", 0.4, 0)])
    assert study.user_attrs["methods"] == ["evit"]


def test_a_worker_leaves_when_another_adds_a_method_that_it_does_not_know(tmp_path, monkeypatch, key_norm):
    study = opened(tmp_path)
    enqueue(study, [Point("key-norm", 0.5, 0)])
    monkeypatch.setattr(methods.METHODS, "_methods", dict(methods._OWN))
    with pytest.raises(ValueError, match="the study 'search' has the method key-norm, which no imported module"):
        Worker(study, POINTS, logged(tmp_path)).run()
    assert [trial.state for trial in study.get_trials()] == [TrialState.WAITING]  # for one that knows it


def test_a_method_that_takes_no_keep_rate_is_tried_once(monkeypatch, key_norm):
    own = methods.Method("easy-first", "Easy first", "", schedule=CumulativeImportance(share=0.8))
    methods.register_method(own)
    rates = {"easy-first": (0.7, 0.5), "key-norm": (0.7,)}
    assert grid(rates, (0, 1), "training-free") == [Point("easy-first", None, 0), Point("key-norm", 0.7, 0)]
    assert Point("easy-first").pruning((1, 2), "finetuned") == PruneConfig(schedule=own.schedule, blocks=(1, 2))
    with pytest.raises(ValueError, match="a target is met by the keep rate, but easy-first takes none"):
        SearchSettings(ModelSpec("test_vit"), methods=("dense", "easy-first"), target_gflops=1.0)


def test_the_methods_that_are_tried_unasked_come_from_the_registry(key_norm):
    before = ("dense", "random", "evit", "tome", "renyi-0.5", "shannon", "renyi-2", "renyi-4", "renyi-inf")
    assert [name for name in default_methods() if name != "key-norm"] == list(before)
    assert SearchSettings(ModelSpec("test_vit")).methods == default_methods()
    assert default_methods().index("key-norm") == 3  # by its rank


def test_random_pruning_draws_by_its_seed_or_by_the_run_s():
    point = Point("random", 0.5, 7)
    assert point.pruning(None, "training-free").criterion.seed == 7
    assert point.pruning(None, "finetuned").criterion.seed is None
    assert Point("evit", 0.5, 7).pruning((1, 2), "finetuned").reduction == "fuse"
    assert Point("dense", None, 7).pruning(None, "finetuned") is None


# ------------------------------------------------------------------------------------------------------ one worker


def test_every_setting_is_tried_once_and_never_again(tmp_path):
    study = opened(tmp_path)
    assert Worker(study, POINTS, logged(tmp_path)).run() == 5
    assert completed(study) == expected()
    assert Worker(opened(tmp_path), POINTS, logged(tmp_path)).run() == 0
    more = [*POINTS, Point("renyi-4", 0.7, 0)]
    assert Worker(opened(tmp_path), more, logged(tmp_path)).run() == 1
    assert completed(opened(tmp_path)) == expected(more)
    assert len(tried(tmp_path)) == 6
    record = study.get_trials()[0].user_attrs[RECORD]
    assert record == score(POINTS[0])


def test_a_limit_leaves_the_rest_for_later(tmp_path):
    assert Worker(opened(tmp_path), POINTS, logged(tmp_path)).run(2) == 2
    seen = []
    assert Worker(opened(tmp_path), POINTS, logged(tmp_path), on_standing=seen.append).run(9) == 3
    assert (seen[0].finished, seen[0].settings) == (2, 5)
    assert (seen[-1].finished, seen[-1].running, seen[-1].given_up) == (5, 0, 0)


def test_a_setting_that_raises_stops_the_worker_and_is_tried_again_later(tmp_path):
    broken = [POINTS[1]]

    def measure(point):
        if point in broken:
            raise OSError("no space left on device")
        return score(point)

    with pytest.raises(OSError, match="no space left"):
        Worker(opened(tmp_path), POINTS, measure).run()
    failed = [trial for trial in opened(tmp_path).get_trials() if trial.state == TrialState.FAIL]
    assert [trial.user_attrs["error"] for trial in failed] == ["OSError: no space left on device"]
    broken.clear()
    assert Worker(opened(tmp_path), POINTS, measure).run() == 4
    assert completed(opened(tmp_path)) == expected()


def test_a_setting_is_given_up_after_so_many_failures(tmp_path):
    def measure(point):
        if point == POINTS[1]:
            raise OSError("no space left on device")
        return score(point)

    for _ in range(3):
        with pytest.raises(OSError, match="no space left"):
            Worker(opened(tmp_path), POINTS, measure, retries=2).run()
    worker = Worker(opened(tmp_path), POINTS, measure, retries=2)
    worker.run()
    now = standing(opened(tmp_path).get_trials(), POINTS, 2)
    assert (now.settings, now.finished, now.given_up) == (5, 4, 1)
    assert to_enqueue(opened(tmp_path).get_trials(), POINTS, 3) == [POINTS[1]]


def test_a_setting_that_diverges_is_given_up_at_once_and_the_others_go_on(tmp_path):
    def measure(point):
        if point == POINTS[1]:
            raise DivergedError("the loss is nan")
        return score(point)

    assert Worker(opened(tmp_path), POINTS, measure).run() == 5
    assert completed(opened(tmp_path)) == expected([POINTS[0], *POINTS[2:]])
    assert standing(opened(tmp_path).get_trials(), POINTS, 10).given_up == 1
    assert Worker(opened(tmp_path), POINTS, measure).run() == 0


def test_a_stop_by_hand_is_no_failure(tmp_path):
    def stopped(point):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Worker(opened(tmp_path), POINTS[:1], stopped, retries=0).run()
    assert Worker(opened(tmp_path), POINTS[:1], score, retries=0).run() == 1


def test_a_setting_whose_folder_is_in_use_is_left_for_later(tmp_path):
    calls = []

    def measure(point):
        calls.append(point)
        if len(calls) == 1:
            raise RunBusyError("another process is training")
        return score(point)

    assert Worker(opened(tmp_path), POINTS, measure, grace=0.3, poll=0.05, on_standing=not_for_ever()).run() == 5
    assert calls[0] == calls[-1] == POINTS[0]
    assert completed(opened(tmp_path)) == expected()


# -------------------------------------------------------------------------------------------------- several workers


def work(folder, seconds=0.0, grace=600):
    """A worker in a process of its own."""
    with quiet():
        Worker(opened(folder, grace=grace), POINTS, logged(folder, seconds), poll=0.05, grace=grace).run()


def test_workers_that_start_at_the_same_moment_share_the_work(folder):
    # Nothing is there yet: they also race for the tables, the study and the queue.
    processes = [fork.Process(target=work, args=(folder, 0.15)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(name for name, _ in tried(folder)) == sorted(point.name for point in POINTS)
    assert len({worker for _, worker in tried(folder)}) > 1
    assert completed(opened(folder)) == expected()


def claim(folder, barrier, found):
    with quiet():
        study = opened(folder)
        storage = study._storage
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        for trial in waiting:
            barrier.wait(20)
            found.put((trial.number, storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)))


def test_two_workers_never_claim_one_trial(folder):
    points = [Point("evit", 0.7, seed) for seed in range(12)]
    enqueue(opened(folder), points)
    barrier, found = fork.Barrier(2), fork.Queue()
    processes = [fork.Process(target=claim, args=(folder, barrier, found)) for _ in range(2)]
    for process in processes:
        process.start()
    claims = [found.get(timeout=30) for _ in range(2 * len(points))]
    for process in processes:
        process.join()
    won = [number for number, mine in claims if mine]
    assert sorted(won) == list(range(len(points)))


def test_a_worker_killed_in_the_middle_is_replaced_at_once_on_its_machine(folder):
    process = fork.Process(target=work, args=(folder, 30.0, 10_000))
    process.start()
    note = folder / "tried.txt"
    while not (note.exists() and note.read_text().endswith("\n")):  # killed once its line is whole
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    # A worker that waits for nobody does all that is left, so it knew at once.
    assert Worker(opened(folder, grace=10_000), POINTS, logged(folder), wait=False).run() == 5
    names = [name for name, _ in tried(folder)]
    assert names.count(POINTS[0].name) == 2
    assert sorted(names[1:]) == sorted(point.name for point in POINTS)
    study = opened(folder)
    assert completed(study) == expected()
    assert [trial.state for trial in trials_by_point(study.get_trials())[POINTS[0]]] == [
        TrialState.FAIL,
        TrialState.COMPLETE,
    ]


def not_for_ever(polls=200):
    """An `on_standing` that ends a worker which waits in vain."""
    left = iter(range(polls))
    return lambda standing: next(left)


def lost(study, worker):
    """A trial that runs, as a worker on another machine left it when it died."""
    enqueue(study, POINTS[:1])

    def die(trial):
        if worker is not None:
            trial.set_user_attr(WORKER, worker)
        raise SystemExit  # which Optuna does not take for the end of the trial

    with pytest.raises(SystemExit):
        study.optimize(die, n_trials=1)
    assert study.get_trials()[0].state == TrialState.RUNNING


@pytest.mark.parametrize("worker", [{"host": "b", "machine": "another", "pid": 1, "started": 1}, None])
def test_a_worker_lost_elsewhere_is_replaced_when_its_heart_has_not_beaten_for_long(folder, worker):
    study = opened(folder, grace=2)
    lost(study, worker)
    assert Worker(study, POINTS, score, poll=0.1, grace=2, on_standing=not_for_ever()).run() == 5
    assert completed(study) == expected()


def test_a_claim_without_name_or_heartbeat_is_taken_back(tmp_path):
    study = opened(tmp_path)
    enqueue(study, POINTS[:1])
    trial = study.get_trials()[0]
    assert study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    assert Worker(study, POINTS, score, poll=0.05, grace=0.3, on_standing=not_for_ever()).run() == 5
    assert completed(study) == expected()


def test_a_worker_that_was_taken_for_dead_leaves_the_result_to_its_successor(tmp_path):
    study = opened(tmp_path)

    def measure(point):
        if point == POINTS[0]:  # meanwhile another worker has declared this trial dead, and done it
            other = opened(tmp_path)
            other.tell(0, state=TrialState.FAIL)
            enqueue(other, [point])
            assert Worker(other, [point], score, wait=False).run(1) == 1
        return score(point)

    # The successor finishes the queue's first, which is the second setting.
    enqueue(study, POINTS[:1])
    assert Worker(study, POINTS, measure).run() == 5
    assert completed(study) == expected()


def test_of_two_trials_of_one_setting_the_younger_gives_way(tmp_path):
    study = opened(tmp_path)
    enqueue(study, [*POINTS, *POINTS])
    assert Worker(study, POINTS, logged(tmp_path)).run() == 5
    assert completed(study) == expected()
    assert len(tried(tmp_path)) == 5


def test_a_process_is_known_by_more_than_its_number():
    here = this_process()
    assert not is_dead(here)
    if here["machine"] is None:
        pytest.skip("this system does not tell processes apart")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = here | {"pid": child.pid, "started": here["started"]}
    assert is_dead(name)  # another process has that number now
    child.kill()
    child.wait()
    assert is_dead(name)
    assert not is_dead(name | {"machine": "elsewhere"})


# ------------------------------------------------------------------------------------------------------- refusals


def test_a_study_of_other_settings_is_refused_and_says_what_differs(tmp_path):
    opened(tmp_path)
    opened(tmp_path, compared=COMPARED | {"data": {"name": "digits", "root": "moved"}})
    other = COMPARED | {"model": {"name": "vit_tiny"}, "scope": "finetuned"}
    with pytest.raises(StudyMismatchError) as caught:
        opened(tmp_path, compared=other)
    assert "model.name is 'test_vit' there and 'vit_tiny' here" in str(caught.value)
    assert "scope is 'training-free' there and 'finetuned' here" in str(caught.value)
    opened(tmp_path, name="another", compared=other)


def test_weights_are_compared_by_what_they_are_and_not_by_where(tmp_path):
    here = COMPARED | {"model": {"name": "test_vit", "weights": "d/best.safetensors"}, "weights": "0123abcd"}
    opened(tmp_path, compared=here)
    opened(tmp_path, compared=here | {"model": {"name": "test_vit", "weights": "/home/me/d/best.safetensors"}})
    with pytest.raises(StudyMismatchError, match="weights is '0123abcd' there and '4567' here"):
        opened(tmp_path, compared=here | {"weights": "4567"})


def test_a_study_of_something_else_is_refused(tmp_path):
    storage = open_storage(sqlite_address(tmp_path / "search.db"), 1, 4)
    optuna.create_study(storage=storage, study_name="mine").add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(StudyMismatchError, match="was not made by `entropatch search`"):
        opened(tmp_path, name="mine")


def test_a_folder_with_braces_holds_a_study(tmp_path):
    folder = tmp_path / "a {b} 100%"
    folder.mkdir()
    opened(folder)
    assert (folder / "search.db").is_file()
    with pytest.raises(ValueError, match="question mark"):
        sqlite_address(tmp_path / "what?" / "search.db")


@pytest.mark.parametrize("address", ["nonsense", "sqlite:////no/such/folder/search.db", "lotus://host/name"])
def test_a_storage_that_cannot_be_opened_is_one_line(address, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ValueError, match="storage") as caught:
        open_storage(address)
    assert "\n" not in str(caught.value)
