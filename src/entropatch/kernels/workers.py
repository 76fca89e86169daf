"""Threads on which PyTorch's operators run serially, each on blocks of its own.

By default PyTorch spreads every operator over its OpenMP threads, which wait for the next one in a loop. Where they
sleep in between instead (OMP_WAIT_POLICY=PASSIVE, as on shared machines), waking them costs more than a small operator:
then whole chains of operators are given to threads of our own, which are woken once. Where OpenMP's threads loop, they
would take the cores from ours.

A process that is forked (`os.fork`, multiprocessing's "fork", which Linux uses by default before Python 3.14) has none
of its parent's threads. The pool here is started anew in it; PyTorch's OpenMP threads are not: once the parent has run
an operator on several of them, such as a forward pass, an operator that wants them hangs for ever in the child. That is
PyTorch's and holds without this package. Start such processes by "spawn" or "forkserver", or fork before the first
forward pass, or call `torch.set_num_threads(1)` in the child before its first operator, as PyTorch's `DataLoader` does
in its workers.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Task = TypeVar("Task")
Space = TypeVar("Space")

# OpenMP reads the variable once, when PyTorch is imported. Only with OpenMP is the number of threads a property of the
# thread that calls; other builds know one for the whole process.
IDLE_THREADS_SLEEP = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive" and torch.backends.openmp.is_available()

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_size = 0


def number_of_workers(device: torch.device) -> int:
    """PyTorch's number of threads where it pays to give each its own work; otherwise 1."""
    return torch.get_num_threads() if device.type == "cpu" and IDLE_THREADS_SLEEP else 1


def share_out(work: Callable[[Task, Space], object], tasks: Iterable[Task], spaces: Sequence[Space]) -> None:
    """Call `work(task, space)` for each task, on as many threads as there are spaces; each space belongs to one thread.

    Without gradients. A single space is used on the calling thread, with all of PyTorch's threads. After an error no
    further task is begun; it is raised once every thread has stopped.
    """
    waiting = deque(tasks)

    def work_off(space: Space) -> None:
        # Grad mode belongs to the thread, and tensors made in inference mode may be written in no other.
        with torch.inference_mode():
            while True:
                try:
                    task = waiting.popleft()
                except IndexError:
                    return
                try:
                    work(task, space)
                except BaseException:
                    waiting.clear()
                    raise

    if len(spaces) <= 1:
        return work_off(*spaces) if spaces else None
    try:
        running = _start(work_off, spaces)
        errors = [error for future in running if (error := future.exception()) is not None]
    finally:
        waiting.clear()  # if the calling thread was interrupted
    if errors:
        raise errors[0]


def _start(work_off: Callable[[Space], None], spaces: Sequence[Space]) -> list[Future[None]]:
    """Submit to the pool, which is started at the first call and again when more threads are wanted."""
    global _pool, _size
    with _lock:
        if _pool is None or _size < len(spaces):
            if _pool is not None:
                _pool.shutdown(wait=False)  # what it was given it finishes
            _pool, _size = _started(len(spaces)), len(spaces)
        return [_pool.submit(work_off, space) for space in spaces]


def _started(count: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(count, thread_name_prefix="entropatch")
    threads, all_there = torch.get_num_threads(), threading.Barrier(count)
    for future in [pool.submit(_run_serially, all_there) for _ in range(count)]:
        future.result()
    # PyTorch gives threads that come later the number that was set last, on whichever thread.
    torch.set_num_threads(threads)
    return pool


def _run_serially(all_there: threading.Barrier) -> None:
    torch.get_num_threads()  # its first use on a thread sets that thread's number
    torch.set_num_threads(1)
    all_there.wait()  # so that every task of the start finds a thread of its own


def _forget() -> None:
    """A forked process has the pool's records, but none of its threads."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget)
