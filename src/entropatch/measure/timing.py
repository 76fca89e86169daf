"""Throughput and latency of several functions, measured in turns so that drift hits all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from entropatch.records.uncertainty import median_interval


@dataclass(frozen=True)
class Timing:
    """How fast one function ran.

    Attributes:
        images_per_second: batch size over the median time of a call.
        p50_ms: median time of a call, in milliseconds.
        p95_ms: 95th percentile of the time of a call, in milliseconds, linearly interpolated.
        repeats: timed calls.
        seconds: of each call, in the order of the rounds.
    """

    images_per_second: float
    p50_ms: float
    p95_ms: float
    repeats: int
    seconds: tuple[float, ...] = field(default=(), repr=False, compare=False)

    @property
    def spread(self) -> float | None:
        """How unsteady the machine was: the distance of the quartiles of the calls over their median; None for fewer
        than four calls."""
        if len(self.seconds) < 4:
            return None
        low, middle, high = _quantiles(self.seconds, 0.25, 0.5, 0.75)
        return (high - low) / middle


@dataclass(frozen=True)
class SpeedRatio:
    """How many times as fast one function ran as another.

    Attributes:
        median: of the ratios of the rounds.
        low, high: its 95 % interval by order statistics, whatever the distribution; None below six rounds.
        rounds: how many.
    """

    median: float
    low: float | None
    high: float | None
    rounds: int

    @property
    def half_width(self) -> float:
        """The larger distance of the interval's ends from the median, as a share of it; infinite without interval."""
        if self.low is None or self.high is None:
            return float("inf")
        return max(self.high - self.median, self.median - self.low) / self.median


def speed_ratio(one: Timing, other: Timing) -> SpeedRatio:
    """Images/s of `one` over those of `other`, both of one `time_interleaved`: the rounds are pairs, so what a round
    had of drift and other load cancels. Of timings without the seconds of their rounds the ratio of images/s alone."""
    if not one.seconds or len(one.seconds) != len(other.seconds):
        return SpeedRatio(one.images_per_second / other.images_per_second, None, None, 0)
    ratios = [theirs / mine for mine, theirs in zip(one.seconds, other.seconds, strict=True)]
    return SpeedRatio(*median_interval(ratios), len(ratios))


def time_interleaved(
    runs: Mapping[str, Callable[[], object]],
    batch_size: int,
    *,
    repeats: int = 10,
    warmup: int = 2,
    device: str | torch.device = "cpu",
    on_step: Callable[[], None] | None = None,
    shuffled: bool = False,
    until: Callable[[dict[str, Timing]], bool] | None = None,
    most: int = 0,
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
        shuffled: each round in an order of its own (of a fixed seed), so that none always follows the same one.
        until: asked after `repeats` rounds and after each further one, given the timings so far; False adds a round.
        most: rounds at which `until` is asked no more.

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
    order, draw = list(runs), random.Random(0)

    def timings() -> dict[str, Timing]:
        return {name: _timing(times, batch_size) for name, times in seconds.items()}

    def more(done: int) -> bool:
        return done < repeats or (until is not None and done < most and not until(timings()))

    with torch.inference_mode():
        turn = 0
        while turn < warmup or more(turn - warmup):
            if shuffled:
                draw.shuffle(order)
            for name in order:
                taken = _timed(runs[name], device)
                if turn >= warmup:
                    seconds[name].append(taken)
                if on_step is not None:
                    on_step()
            turn += 1
    return timings()


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
    p50, p95 = _quantiles(seconds, 0.5, 0.95)
    return Timing(batch_size / p50, p50 * 1e3, p95 * 1e3, len(seconds), tuple(seconds))


def _quantiles(seconds: Sequence[float], *shares: float) -> list[float]:
    times = torch.tensor(seconds, dtype=torch.float64)
    return times.quantile(torch.tensor(shares, dtype=torch.float64)).tolist()
