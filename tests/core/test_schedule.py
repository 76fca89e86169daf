"""How many tokens stay: rates, tokens per block, and a share of the importance for each image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropatch import CumulativeImportance, KeepRate, PruneConfig, RemovePerBlock
from entropatch.schedule import Schedule, Site, exact_rate


def counts(config: PruneConfig, depth: int, n: int, most: Any = lambda n: n // 2) -> list[int]:
    """Tokens after each reducing block of a schedule that looks at no scores, as a block allows."""
    total, left = n, []
    for stage in config.stages(depth):
        wanted = stage.schedule.count(Site(stage.block, stage.index, stage.count, stage.rate, n, total), None)
        assert isinstance(wanted, int)
        n = max(wanted, n - most(n))
        left.append(n)
    return left


def test_r_tokens_go_from_every_block() -> None:
    assert counts(PruneConfig(r=13), 12, 196) == [196 - 13 * (i + 1) for i in range(12)]
    assert counts(PruneConfig(r=(5, 0, 7)), 3, 20) == [15, 15, 8]
    assert counts(PruneConfig(r=8, blocks=(3, 6)), 12, 196) == [188, 180]
    assert counts(PruneConfig(r=100), 3, 20) == [10, 5, 3]  # at most half of what there is
    assert counts(PruneConfig(r=0), 4, 20) == [20] * 4


@pytest.mark.parametrize(("r", "inflection", "removed"), [(8, -1.0, (16, 12, 8, 4, 0)), (8, 1.0, (0, 4, 8, 12, 16))])
def test_a_linear_schedule_runs_from_one_end_to_the_other(r: int, inflection: float, removed: tuple[int, ...]) -> None:
    schedule, left = RemovePerBlock(r, inflection), 196
    for step, n in zip(removed, counts(PruneConfig(schedule=schedule), 5, 196), strict=True):
        left -= step
        assert n == left


@given(st.integers(1, 20), st.floats(-1, 1), st.integers(2, 14))
def test_a_linear_schedule_removes_r_on_average(r: int, inflection: float, depth: int) -> None:
    """Rounded down block by block, so up to one token per block less."""
    total = 10_000 - counts(PruneConfig(schedule=RemovePerBlock(r, inflection)), depth, 10_000)[-1]
    assert r * depth - depth <= total <= r * depth


@given(st.sampled_from([0.9, 0.7, 0.5, 0.55]), st.integers(8, 400), st.integers(1, 24))
def test_without_r_as_many_go_as_by_three_stages_of_the_rate(rate: float, n: int, depth: int) -> None:
    left = n
    for _ in range(3):
        left = reference.kept_count(rate, left)
    after = counts(PruneConfig(keep_rate=rate, schedule=RemovePerBlock()), depth, n, most=lambda n: n - 1)
    assert after[-1] == left
    steps = [a - b for a, b in zip([n, *after], after, strict=False)]
    assert max(steps) - min(steps) <= 1  # evenly


def test_a_keep_rate_of_one_removes_nothing_under_every_schedule() -> None:
    for schedule in (KeepRate(), RemovePerBlock()):
        assert set(counts(PruneConfig(keep_rate=1.0, schedule=schedule), 12, 196)) == {196}


# --- a share of the importance -----------------------------------------------------------------------------------


@given(st.lists(st.floats(0.001, 1), min_size=8, max_size=8), st.floats(0.05, 1))
def test_an_image_keeps_the_fewest_patches_that_hold_the_share(weights: list[float], share: float) -> None:
    mass = torch.tensor([weights], dtype=torch.float64) / math.fsum(weights)
    schedule = CumulativeImportance(share, sizes=(0.25, 0.5, 0.75, 1.0))
    site = Site(3, 0, 1, exact_rate(0.7), 8, 8)
    got = schedule.rounded(schedule.count(site, mass.float()), site).item()
    ranked = sorted((w / math.fsum(weights) for w in weights), reverse=True)
    sums = [math.fsum(ranked[: k + 1]) for k in range(8)]
    # Within rounding of the border either side is right.
    allowed = {next((k + 1 for k, held in enumerate(sums) if held >= share - slack), 8) for slack in (0, 2e-6)}
    assert got in {next(size for size in (2, 4, 6, 8) if size >= k) for k in allowed}


def test_sizes_are_those_of_the_patches_that_entered() -> None:
    """A later stage rounds to the same four sizes, so images of one size meet again; what is left may be less."""
    mass = torch.full((1, 98), 1 / 98)
    site = Site(6, 1, 2, exact_rate(0.7), 98, 196)
    for share, sizes, kept in ((0.3, (0.25, 0.5), 49), (0.9, (0.25, 0.5), 98), (0.9, (0.1,), 98)):
        schedule = CumulativeImportance(share, sizes)
        assert schedule.rounded(schedule.count(site, mass), site).tolist() == [kept]
    assert CumulativeImportance(0.9, sizes=(0.1,)).sizes == (0.1, 1.0)  # an image that wants more keeps all it has


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RemovePerBlock(-1), ValueError, "at least 0 tokens per block, but got -1"),
        (lambda: RemovePerBlock((1, -2)), ValueError, r"but got \(1, -2\)"),
        (lambda: RemovePerBlock(1.5), TypeError, "a number of tokens, or one for each block, but got 1.5"),
        (lambda: RemovePerBlock(True), TypeError, "but got True"),
        (lambda: RemovePerBlock(3, 1.5), ValueError, r"inflection must lie in \[-1, 1\], but got 1.5"),
        (lambda: RemovePerBlock((3, 4), 0.5), ValueError, "needs a single r"),
        (lambda: CumulativeImportance(0), ValueError, r"share must be a number in \(0, 1\], but got 0"),
        (lambda: CumulativeImportance(sizes=(0.0, 0.5)), ValueError, r"sizes must be rates in \(0, 1\]"),
        (lambda: CumulativeImportance(sizes=(0.1, 0.2, 0.3, 0.4)), ValueError, "at most 4 with 1.0"),
        (lambda: PruneConfig(r=(1, 2)).stages(12), ValueError, "one for each of the 12 blocks, but got 2"),
    ],
)
def test_schedules_out_of_range_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "schedule",
    [
        KeepRate(),
        RemovePerBlock(),
        RemovePerBlock(7, -0.5),
        RemovePerBlock((1, 2)),
        CumulativeImportance(0.8, (0.5, 1.0)),
    ],
)
def test_schedules_are_saved_with_a_setting(schedule: Schedule) -> None:
    config = PruneConfig(schedule=schedule)
    assert PruneConfig.from_json(config.to_json()) == config
    assert hash(PruneConfig.from_json(config.to_json())) == hash(config)


@pytest.mark.parametrize(
    ("r", "inflection", "removed"),
    [
        (5, 0.5, (2, 4, 6, 8)),  # from int(2.5) to 10 - 2
        (5, -0.5, (7, 5, 4, 3)),  # 7, 5.67, 4.33, 3
        (10, 0.9, (0, 6, 13, 20)),  # 10 * (1 - 0.9) is less than 1
        (3, 0.25, (2, 2, 3, 4)),
        (6, 0.0, (6, 6, 6, 6)),
    ],
)
def test_a_linear_schedule_is_cut_off_as_in_the_released_code(
    r: int, inflection: float, removed: tuple[int, ...]
) -> None:
    left = counts(PruneConfig(schedule=RemovePerBlock(r, inflection)), 4, 1000)
    assert tuple(a - b for a, b in zip([1000, *left], left, strict=False)) == removed


def test_an_inflection_is_no_second_entry_of_r() -> None:
    for r in ((13, -1.0), (13, -1)):
        with pytest.raises((TypeError, ValueError), match=r"For an inflection use RemovePerBlock\(r, inflection=…\)"):
            PruneConfig(r=r)  # pyright: ignore[reportArgumentType]


@given(st.lists(st.integers(1, 19), min_size=2, max_size=3, unique=True))
def test_rates_that_are_quotients_give_the_shares_back(twentieths: list[int]) -> None:
    shares = [x / 20 for x in sorted(twentieths, reverse=True)]
    rates = tuple(a / b for a, b in zip(shares, [1.0, *shares], strict=False))
    assert [stage.share for stage in PruneConfig(rates, blocks=tuple(range(len(rates)))).stages(4)] == shares


@pytest.mark.parametrize("rate", [1.0, 0.5, (0.5, 0.6)])
@pytest.mark.parametrize("r", [3, 0, (3, 3)])
def test_a_keep_rate_beside_r_is_refused(rate: Any, r: Any) -> None:
    """It would have no effect; a rate of 1 above all must not remove anything."""
    with pytest.raises(ValueError, match=r"says by itself how many tokens stay, so keep_rate=.* would have no effect"):
        PruneConfig(keep_rate=rate, r=r)
    with pytest.raises(ValueError, match="would have no effect"):
        PruneConfig(r=r).changed(keep_rate=rate)
    assert PruneConfig(r=r).changed(schedule=KeepRate(), keep_rate=rate).keep_rate == rate


def test_what_a_new_schedule_makes_meaningless_is_dropped() -> None:
    listed = PruneConfig(keep_rate=(0.5, 0.6), blocks=(1, 2))
    assert listed.changed(r=3) == PruneConfig(r=3)
    assert listed.changed(method="tome", r=3) == PruneConfig(method="tome", r=3)
    assert PruneConfig(r=3, blocks=(1, 2)).changed(r=5) == PruneConfig(r=5, blocks=(1, 2))
    assert PruneConfig(blocks=(1, 2)).changed(method="tome") == PruneConfig(method="tome")
    assert PruneConfig(blocks=(1, 2)).changed(method="evit") == PruneConfig(method="evit", blocks=(1, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RemovePerBlock(np.int64(3)),  # pyright: ignore[reportArgumentType]
        lambda: RemovePerBlock(np.int64(3), np.float32(0.5)),  # pyright: ignore[reportArgumentType]
        lambda: CumulativeImportance(np.float32(0.5), (np.float32(0.5),)),  # pyright: ignore[reportArgumentType]
    ],
)
def test_numpy_numbers_are_saved(make: Any) -> None:
    config = PruneConfig(schedule=make())
    assert PruneConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "make",
    [
        lambda: RemovePerBlock(3, "0.5"),  # pyright: ignore[reportArgumentType]
        lambda: RemovePerBlock(3, True),
        lambda: CumulativeImportance("0.5"),  # pyright: ignore[reportArgumentType]
        lambda: CumulativeImportance(0.5, 0.5),  # pyright: ignore[reportArgumentType]
        lambda: CumulativeImportance(0.5, ("0.5",)),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_is_no_number_is_named(make: Any) -> None:
    with pytest.raises(TypeError, match=r"must be .*but got"):
        make()
