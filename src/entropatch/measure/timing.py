"""Throughput and latency of several functions, measured in turns so that drift hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """How fast one function ran.

    Attributes:
        images_per_second: batch size over the median time of a call.
        p50_ms: median time of a call, in milliseconds.
        p95_ms: 95th percentile of the time of a call, in milliseconds, linearly interpolated.
        repeats: timed calls.
    """

    images_per_second: float
    p50_ms: float
    p95_ms: float
    repeats: int


def time_interleaved(
    runs: Mapping[str, Callable[[], object]],
    batch_size: int,
    *,
    repeats: int = 10,
    warmup: int = 2,
    device: str | torch.device = "cpu",
    on_step: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time functions in turns, A B C A B C …, so that clock and temperature drift hit all of them alike.

    Each call is timed alone, in inference mode; on an accelerator the device is synchronised before and after it, so
    a time is that of the finished work. `warmup` untimed rounds come first, in the same order.

    Args:
        runs: functions without arguments, by name.
        batch_size: images one call processes; for `images_per_second` only.
        repeats: timed rounds; the p95 of few rounds is close to their maximum.
        warmup: untimed rounds before.
        device: the device the functions use.
        on_step: called after every call, warm-up included: (warmup + repeats) · len(runs) times. For progress bars.

    Returns:
        A `Timing` for each name, in the order of `runs`.

    Raises:
        ValueError: no runs, repeats < 1, warmup < 0, or batch_size < 1. Whatever a function raises passes through.
    """
    if not runs:
        raise ValueError("runs must hold at least one function to time, but got none.")
    for name, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0), ("batch_size", batch_size, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but got {value}.")
    device = torch.device(device)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for turn in range(warmup + repeats):
            for name, run in runs.items():
                taken = _timed(run, device)
                if turn >= warmup:
                    seconds[name].append(taken)
                if on_step is not None:
                    on_step()
    return {name: _timing(times, batch_size) for name, times in seconds.items()}


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished what it was given; the CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def _timing(seconds: list[float], batch_size: int) -> Timing:
    times = torch.tensor(seconds, dtype=torch.float64)
    p50, p95 = times.quantile(torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
    return Timing(batch_size / p50, p50 * 1e3, p95 * 1e3, len(seconds))
