"""Peak memory of tensors during a function call."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from entropatch.measure.timing import synchronize


def peak_memory(run: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Peak of the tensor memory that `run` allocates, above what was allocated when it began, in bytes.

    Weights and inputs that exist already are not counted: this is what the call itself needs. `run` is called twice,
    in inference mode: once to fill caches and workspaces, once measured.

    - CUDA: `torch.cuda.max_memory_allocated` after a reset, less the allocation before the call. (The caching
      allocator may reserve more from the driver.)
    - CPU: every allocation and release of PyTorch's CPU allocator, in order, as `torch.profiler` records them; the peak
      of their running sum. The resident size of the process would not do: the C library keeps freed pages, so a second
      forward pass seems to need nothing. Not seen is memory that libraries take past PyTorch's allocator, such as
      packing buffers of matrix products; it is small and alike for all methods.

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
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()  # held until the profiler stops, so that freeing it is not part of the record
    del result
    return max(accumulate(_allocations(profiler), initial=0))


def _allocations(profiler: profile) -> list[int]:
    """Bytes of each CPU allocation (positive) and release (negative), in order of time.

    The exported trace is the profiler's public record of single allocations; its tables only hold sums by operator.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    return [event["args"]["Bytes"] for event in sorted(memory, key=lambda event: event["ts"])]
