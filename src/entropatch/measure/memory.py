"""Peak memory of tensors during a function call, and running out of memory without being killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch
from torch.autograd.profiler import profile

from entropatch.measure.timing import synchronize


def peak_memory(run: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Peak of the tensor memory that `run` allocates, above what was allocated when it began, in bytes.

    Weights and inputs that exist already are not counted: this is what the call itself needs. `run` is called twice,
    in inference mode: once to fill caches and workspaces, once measured.

    - CUDA: `torch.cuda.max_memory_allocated` after a reset, less the allocation before the call. (The caching
      allocator may reserve more from the driver.)
    - CPU: every allocation and release of PyTorch's CPU allocator, in order, as PyTorch's profiler records them; the
      peak of their running sum. The resident size of the process would not do: the C library keeps freed pages, so a
      second forward pass seems to need nothing. Not seen is memory that libraries take past PyTorch's allocator, such
      as packing buffers of matrix products; it is small and alike for all methods.

    Args:
        run: a function without arguments.
        device: the device it uses: "cpu" or "cuda".

    Returns:
        Bytes.

    Raises:
        ValueError: another kind of device.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f'device must be "cpu" or "cuda" to measure peak memory, but got "{device}".')
    with torch.inference_mode():
        run()
        return _cuda_peak(run, device) if device.type == "cuda" else _cpu_peak(run)


def _cuda_peak(run: Callable[[], object], device: torch.device) -> int:
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(run: Callable[[], object]) -> int:
    # The tables of torch.profiler hold sums by operator; the order of single allocations is in the raw events.
    profiler = profile(use_kineto=False, profile_memory=True)
    with _quiet(), profiler:
        result = run()  # held until the profiler stops, so that freeing it is not part of the record
    del result
    assert profiler.kineto_results is not None  # set when the block above is left
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    sizes = (event.nbytes() for event in events)  # pyright: ignore[reportAttributeAccessIssue]  # missing in its stub
    return max(accumulate(sizes, initial=0))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that the profiler's backend logs when it starts and stops; 6 is above its highest level."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = before or "6"
    try:
        yield
    finally:
        if before is None:
            del os.environ["KINETO_LOG_LEVEL"]


@contextmanager
def memory_errors() -> Iterator[None]:
    """Let this process get an error when it asks for more memory than the machine has, in place of being killed.

    Linux grants any request and kills the process when it uses the memory. Inside this block the data segment may grow
    by no more than what is available now, so that PyTorch's CPU allocator fails with a RuntimeError that can be
    handled. Does nothing on other systems, or where a lower limit is set already.
    """
    try:
        import resource

        available, used = _meminfo("/proc/meminfo", "MemAvailable"), _meminfo("/proc/self/status", "VmData")
    except (ImportError, OSError, ValueError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + available
    unlimited = resource.RLIM_INFINITY
    if any(value != unlimited and value <= limit for value in (soft, hard)):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _meminfo(path: str, key: str) -> int:
    """A figure in bytes from a file of lines such as "MemAvailable:   21102344 kB"."""
    for line in Path(path).read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ValueError(f"{path} has no {key}")
