"""Timing in turns, peak memory of known allocations, and the record of the machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

import entropatch
from entropatch.measure import Timing, environment, peak_memory, time_interleaved
from entropatch.measure.memory import memory_errors
from entropatch.measure.timing import speed_ratio

MB = 10**6


def floats(megabytes: int) -> torch.Tensor:
    return torch.empty(megabytes * MB // 4)


# -------------------------------------------------------------------------------------------------------- timing


class Clock:
    """A clock that only moves when a run says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def run(self, seconds: list[float]) -> Callable[[], None]:
        left = iter(seconds)

        def run() -> None:
            self.now += next(left)

        return run


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_runs_take_turns_and_warm_up_first():
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ABC"}
    timings = time_interleaved(runs, 1, repeats=3, warmup=2)
    assert calls == list("ABC" * 5)
    assert list(timings) == list("ABC")


def test_medians_percentiles_and_throughput(clock):
    fast = [9.0] + [0.001 * i for i in (3, 1, 2, 5, 4)]  # the warm-up's 9 s must not count
    slow = [9.0] + [1.0] * 5
    timings = time_interleaved({"fast": clock.run(fast), "slow": clock.run(slow)}, 12, repeats=5, warmup=1)
    # The 95th percentile of 1, 2, 3, 4, 5 lies 0.8 of the way from the fourth to the fifth.
    assert timings["fast"] == Timing(pytest.approx(12 / 0.003), pytest.approx(3.0), pytest.approx(4.8), 5)
    assert timings["slow"] == Timing(pytest.approx(12.0), pytest.approx(1000.0), pytest.approx(1000.0), 5)


def test_ratios_are_of_the_rounds_pairs(clock):
    """A machine that becomes ten times as slow half-way: each round's ratio is as before."""
    drift = [1.0] * 5 + [10.0] * 5
    wobble = [1.02, 0.98, 1.01, 0.99, 1.0, 1.05, 0.95, 1.0, 1.03, 0.97]
    slow = [2.0 * d * w for d, w in zip(drift, wobble, strict=True)]
    timings = time_interleaved({"fast": clock.run(drift), "slow": clock.run(slow)}, 1, repeats=10, warmup=0)
    ratio = speed_ratio(timings["slow"], timings["fast"])
    assert ratio.median == pytest.approx(0.5)
    # Of ten values the second and the ninth: 2 · P(Bin(10, ½) < 2) = 0.021.
    ends = [sorted(0.5 / w for w in wobble)[place] for place in (1, 8)]
    assert (ratio.low, ratio.high, ratio.rounds) == (pytest.approx(ends[0]), pytest.approx(ends[1]), 10)
    assert ratio.half_width == pytest.approx(max(ends[1] - 0.5, 0.5 - ends[0]) / 0.5)
    few = Timing(10.0, 1.0, 1.0, 5, (1.0,) * 5)
    assert speed_ratio(few, few).half_width == float("inf")
    assert speed_ratio(Timing(10.0, 1.0, 1.0, 1), Timing(5.0, 1.0, 1.0, 1)).median == 2.0  # seconds unknown


def test_the_spread_of_the_rounds(clock):
    times = [4.0, 1.0, 2.0, 3.0, 5.0]
    (timing,) = time_interleaved({"a": clock.run(times)}, 1, repeats=5, warmup=0).values()
    assert timing.seconds == tuple(times)
    assert timing.spread == pytest.approx((4 - 2) / 3)
    assert Timing(1.0, 1.0, 1.0, 3, (1.0, 2.0, 3.0)).spread is None


def test_rounds_are_added_until_it_is_enough(clock):
    asked = []

    def enough(timings):
        asked.append(timings["a"].repeats)
        return len(asked) == 3

    runs = {"a": clock.run([1.0] * 9), "b": clock.run([1.0] * 9)}
    timings = time_interleaved(runs, 1, repeats=4, warmup=1, until=enough, most=100)
    assert asked == [4, 5, 6]
    assert timings["b"].repeats == 6
    runs = {"a": clock.run([1.0] * 9)}
    assert time_interleaved(runs, 1, repeats=2, warmup=0, until=lambda _: False, most=7)["a"].repeats == 7


def test_shuffled_rounds_have_each_run_once_in_an_order_that_is_the_same_next_time():
    def order():
        calls = []
        runs = {name: (lambda name=name: calls.append(name)) for name in "ABCD"}
        timings = time_interleaved(runs, 1, repeats=20, warmup=1, shuffled=True)
        assert list(timings) == list("ABCD")
        return calls

    calls = order()
    rounds = ["".join(calls[i : i + 4]) for i in range(0, 84, 4)]
    assert {"".join(sorted(one)) for one in rounds} == {"ABCD"}
    assert len(set(rounds)) > 8
    assert order() == calls


def test_each_run_is_timed_alone(clock):
    """A run's own time only: not that of the others, nor of the progress bar."""

    def bar() -> None:
        clock.now += 50

    runs = {"a": clock.run([1.0] * 4), "b": clock.run([2.0] * 4)}
    timings = time_interleaved(runs, 1, repeats=4, warmup=0, on_step=bar)
    assert [timings[name].p50_ms for name in "ab"] == [1000, 2000]


def test_on_step_is_called_after_every_run_and_gradients_are_off():
    steps, modes = [], []
    runs = {name: (lambda: modes.append(torch.is_inference_mode_enabled())) for name in "ab"}
    time_interleaved(runs, 1, repeats=3, warmup=2, on_step=lambda: steps.append(len(modes)))
    assert steps == list(range(1, 11))
    assert all(modes)
    assert not torch.is_inference_mode_enabled()


def test_an_accelerator_is_synchronised_before_and_after_each_run(monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: events.append(f"wait {device}"))
    monkeypatch.setattr(time, "perf_counter", lambda: float(len(events)) if events.append("clock") is None else 0.0)
    time_interleaved({"a": lambda: events.append("run")}, 1, repeats=1, warmup=0, device="cuda:1")
    assert events == ["wait cuda:1", "clock", "run", "wait cuda:1", "clock"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": {}}, "runs must hold at least one"),
        ({"repeats": 0}, "repeats must be at least 1, but got 0"),
        ({"warmup": -1}, "warmup must be at least 0, but got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, but got 0"),
    ],
)
def test_impossible_timings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        time_interleaved(**({"runs": {"a": lambda: None}, "batch_size": 1} | arguments))


# -------------------------------------------------------------------------------------------------------- memory


def test_peak_of_tensors_that_live_together():
    def run() -> torch.Tensor:
        a, b = floats(6), floats(3)
        del a
        return torch.cat((b, floats(1)))  # 3 + 1 + 4 live at once, less than 6 + 3

    assert peak_memory(run) == pytest.approx(9 * MB, rel=1e-3)


def test_released_memory_does_not_add_up():
    def run() -> None:
        for _ in range(5):
            floats(4)

    assert peak_memory(run) == pytest.approx(4 * MB, rel=1e-3)


def test_memory_inside_an_operator_counts():
    """The sum of two outer products by einsum needs both products; its result is small."""
    x = torch.randn(1000)
    assert peak_memory(lambda: torch.outer(x, x).exp() @ x) >= 8 * MB


def test_weights_and_inputs_do_not_count():
    layer, x = nn.Linear(1000, 1000), torch.randn(10, 1000)
    assert peak_memory(lambda: layer(x)) == pytest.approx(10 * 1000 * 4, rel=0.2)


def test_first_call_is_not_measured():
    cache: list[torch.Tensor] = []

    def run() -> torch.Tensor:
        if not cache:
            cache.append(floats(50))
        return floats(1)

    assert peak_memory(run) == pytest.approx(MB, rel=1e-3)


def test_nothing_allocated():
    assert peak_memory(lambda: None) == 0


def test_no_gradients_are_kept_and_nothing_is_printed(capfd):
    layer = nn.Linear(10, 10)
    kept: list[bool] = []
    peak_memory(lambda: kept.append(layer(torch.ones(10)).requires_grad))
    assert kept == [False, False]
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err == ""


def test_the_attention_matrix_shows():
    """At 32×32 patches and two heads in float32, one matrix has 8 MiB; the streaming backend never forms it."""
    kernels = pytest.importorskip("entropatch.kernels")
    q, k = torch.randn(2, 1, 2, 1024, 16)
    matrix = peak_memory(lambda: kernels.attention_entropy(q, k, 2.0, 0.25, "reference"))
    assert matrix >= 2 * 1024 * 1024 * 4


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match='must be "cpu" or "cuda" to measure peak memory, but got "mps"'):
        peak_memory(lambda: None, "mps")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_peak_on_cuda():
    def run() -> None:
        for _ in range(3):
            torch.empty(8 * MB // 4, device="cuda")

    assert peak_memory(run, "cuda") == pytest.approx(8 * MB, rel=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_too_much_memory_is_an_error_and_the_limit_goes_away():
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_errors():
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] != before[0]
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.empty(10**15)
        floats(1)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


# --------------------------------------------------------------------------------------------------- environment


def test_environment_names_hardware_threads_and_versions(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    record = environment()
    assert json.loads(json.dumps(record)) == record
    assert record["torch"] == torch.__version__
    assert record["entropatch"] == entropatch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert record["omp_wait_policy"] == "PASSIVE"
    assert record["omp_num_threads"] is None
    assert record["hardware"] == record["cpu"] != ""
    assert isinstance(record["cores"], int)
    assert record["cores"] >= 1
    assert str(record["date"]).endswith("+00:00")
