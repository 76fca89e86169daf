"""Threads of our own: each task once, errors, gradients and modes, PyTorch's numbers of threads, forks."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from entropatch.kernels import workers
from entropatch.kernels.workers import number_of_workers, share_out


def test_each_task_is_done_once_and_no_two_threads_share_a_space() -> None:
    done: Counter[int] = Counter()
    threads: dict[str, set[int]] = {"a": set(), "b": set(), "c": set()}

    def work(task: int, space: str) -> None:
        time.sleep(0.001)
        done[task] += 1
        threads[space].add(threading.get_ident())

    share_out(work, range(60), "abc")
    assert done == Counter(range(60))
    used = [thread for ids in threads.values() for thread in ids]
    assert len(used) == len(set(used)) == 3
    assert threading.get_ident() not in used


def test_a_single_space_stays_on_the_calling_thread() -> None:
    used = []
    share_out(lambda task, space: used.append(threading.get_ident()), range(3), "a")
    assert used == [threading.get_ident()] * 3
    share_out(lambda task, space: used.append(task), [], [])
    assert len(used) == 3


def test_operators_run_serially_there_and_nowhere_else() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        there: list[int] = []
        share_out(lambda task, space: (time.sleep(0.01), there.append(torch.get_num_threads())), range(10), "abcd")
        assert set(there) == {1}
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as fresh:
            assert fresh.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("spaces", ["a", "abc"])
def test_the_error_of_a_task_is_raised_and_ends_the_work(spaces: str) -> None:
    done = []

    def work(task: int, space: str) -> None:
        if task == 5:
            raise MemoryError("no more")
        time.sleep(0.002)
        done.append(task)

    with pytest.raises(MemoryError, match="no more"):
        share_out(work, range(1000), spaces)
    assert len(done) < 20
    share_out(work, range(6, 9), spaces)  # the threads are still there
    assert sorted(done)[-3:] == [6, 7, 8]


@pytest.mark.parametrize("inference", [False, True])
def test_tensors_of_either_mode_can_be_read_and_written(inference: bool) -> None:
    with torch.inference_mode(inference):
        source, target = torch.ones(4, 5), torch.zeros(4, 5)
        if not inference:
            source.requires_grad_()
        share_out(lambda row, space: target[row].copy_(source[row] * 2), range(4), "ab")
        assert target.eq(2).all()
        assert not target.requires_grad


def test_calls_from_several_threads_at_once() -> None:
    def call(offset: int) -> list[int]:
        done: list[int] = []
        share_out(lambda task, space: done.append(task), range(offset, offset + 50), "a" * (2 + offset % 4))
        return sorted(done)

    with ThreadPoolExecutor(6) as callers:
        for offset, done in enumerate(callers.map(call, range(40))):
            assert done == list(range(offset, offset + 50))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    share_out(lambda task, space: None, range(4), "ab")
    child = os.fork()
    if child == 0:
        done: list[int] = []
        share_out(lambda task, space: done.append(task), range(4), "ab")
        os._exit(0 if sorted(done) == [0, 1, 2, 3] else 1)
    for _ in range(200):
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        pytest.fail("the forked process waits for threads that it does not have")
    assert os.waitstatus_to_exitcode(status) == 0


def test_workers_only_where_openmp_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "IDLE_THREADS_SLEEP", False)
    assert number_of_workers(torch.device("cpu")) == 1
    monkeypatch.setattr(workers, "IDLE_THREADS_SLEEP", True)
    assert number_of_workers(torch.device("cpu")) == torch.get_num_threads()
    assert number_of_workers(torch.device("meta")) == 1
