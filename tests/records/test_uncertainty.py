"""Errors and intervals against scipy, against plain loops, and against what repeated experiments really do."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from entropatch.records.uncertainty import (
    Estimate,
    accuracy,
    ahead,
    binomial,
    median_interval,
    paired_difference,
    unpaired_difference,
)


def slow_error(a, b):
    """The standard error in points, by sums over single entries; a and b (seeds, images), lists of 0 and 1."""
    seeds, images = len(a), len(a[0])
    d = [[a[s][i] - b[s][i] for i in range(images)] for s in range(seeds)]
    mean = sum(map(sum, d)) / (seeds * images)
    columns = [sum(d[s][i] for s in range(seeds)) / seeds for i in range(images)]
    rows = [sum(row) / images for row in d]
    of_images = sum(seeds * (c - mean) ** 2 for c in columns) / (images - 1)
    if seeds == 1:
        return 100 * math.sqrt(of_images / images)
    of_seeds = sum(images * (r - mean) ** 2 for r in rows) / (seeds - 1)
    rest = sum((d[s][i] - rows[s] - columns[i] + mean) ** 2 for s in range(seeds) for i in range(images))
    rest /= (seeds - 1) * (images - 1)
    return 100 * math.sqrt((of_images + max(0.0, of_seeds - rest)) / (seeds * images))


def outcomes(rng, seeds, images, by_seed, shift=0.0):
    """Which of the images came out right for two methods: images of all difficulties, seeds that shift them all."""
    hard = rng.normal(2, 1.5, images)
    return (hard + rng.normal(shift, by_seed, (seeds, 1)) + rng.normal(0, 1, (seeds, images)) > 0), hard


@pytest.mark.parametrize(("right", "images"), [(0, 7), (7, 7), (3, 10), (966, 1000), (1, 1)])
def test_wilson_interval_of_one_run(right, images):
    found = binomial(right, images)
    low, high = binomtest(right, images).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((100 * low, 100 * high), abs=1e-9)
    p = right / images
    assert found.value == 100 * p
    assert found.standard_error == pytest.approx(100 * math.sqrt(p * (1 - p) / images))
    assert 0 <= found.low <= found.value <= found.high <= 100
    assert found.low < found.high  # at 0 and 100 % too


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_paired_error_as_its_formula_says(seeds):
    rng = np.random.default_rng(seeds)
    a, b = (outcomes(rng, seeds, 60, 0.8)[0] for _ in range(2))
    found = paired_difference(a, b)
    assert found.value == pytest.approx(100 * (a.mean() - b.mean()))
    assert found.standard_error == pytest.approx(slow_error(a.astype(int).tolist(), b.astype(int).tolist()))
    assert found.differing == sum(bool((a[:, i] != b[:, i]).any()) for i in range(60))
    assert (found.images, found.seeds) == (60, seeds)
    half = (found.high - found.low) / 2
    assert half == pytest.approx(1.96 * found.standard_error, rel=0.25)
    assert paired_difference(b, a).value == -found.value


def test_one_seed_is_the_plain_paired_error():
    rng = np.random.default_rng(0)
    a, b = rng.random(500) < 0.9, rng.random(500) < 0.8
    d = [int(x) - int(y) for x, y in zip(a, b, strict=True)]
    assert paired_difference(a, b).standard_error == pytest.approx(100 * statistics.stdev(d) / math.sqrt(500))


@pytest.mark.parametrize(("seeds", "by_seed"), [(1, 0.0), (3, 0.0), (3, 0.2), (4, 0.05)])
def test_the_error_is_that_of_repeated_experiments(seeds, by_seed):
    """New images and new seeds each time: the differences spread as the standard errors say."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(400):
        a, hard = outcomes(rng, seeds, 300, by_seed)
        other = rng.normal(0.1, by_seed, (seeds, 1)) + rng.normal(0, 1, (seeds, 300))
        found.append(paired_difference(a, hard + other > 0, resamples=0))
    spread = statistics.stdev(one.value for one in found)
    said = math.sqrt(statistics.fmean(one.standard_error**2 for one in found))
    # Chance gives 5 %. A variance of seeds that comes out negative counts as 0, so few seeds that are alike say more.
    assert 0.9 * spread < said < (1.1 if seeds == 1 or by_seed > 0.1 else 1.25) * spread


def test_the_bootstrap_draws_images_and_seeds():
    """Against whole images and seeds drawn by their numbers, the seeds' effects shrunk."""
    rng = np.random.default_rng(5)
    a = outcomes(rng, 3, 80, 0.3)[0]
    found = accuracy(a, resamples=40_000)
    by_image, by_seed = a.mean(0), a.mean(1)
    mean = a.mean()
    of_seeds = 80 * ((by_seed - mean) ** 2).sum() / 2
    rest = ((a - by_image - by_seed[:, None] + mean) ** 2).sum() / (2 * 79)
    shrink = math.sqrt(max(0.0, of_seeds - rest) / of_seeds)
    assert 0.4 < shrink < 0.8  # else this would see neither the seeds nor how they are shrunk
    images = by_image[rng.integers(80, size=(40_000, 80))].mean(1)
    seeds = shrink * (by_seed - mean)[rng.integers(3, size=(40_000, 2))].mean(1)
    low, high = np.quantile(100 * (images + seeds), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.021 * (high - low))
    assert 100 * np.std(images + seeds) == pytest.approx(found.standard_error, rel=0.02)
    assert accuracy(a, resamples=50, seed=1) == accuracy(a, resamples=50, seed=1) != accuracy(a, resamples=50)


def test_one_run_against_several_seeds():
    rng = np.random.default_rng(3)
    a, b = rng.random(200) < 0.9, rng.random((3, 200)) < 0.8
    assert paired_difference(a, b) == paired_difference(np.stack([a] * 3), b)
    assert paired_difference(a, b).seeds == 3


def test_ahead_takes_two_errors_and_six_images():
    base = np.zeros(1000, bool)

    def with_right(first, count):
        found = base.copy()
        found[first : first + count] = True
        return found

    assert ahead(with_right(0, 6), base)
    assert not ahead(with_right(0, 5), base)  # more than two standard errors, yet within chance by a sign test
    assert not ahead(base, with_right(0, 6))
    assert paired_difference(base, with_right(0, 6)).is_distinct
    assert not ahead(with_right(0, 30), with_right(500, 20))  # 10 points of 1000, standard error 7.1
    assert ahead(with_right(0, 40), with_right(500, 20))
    alike = paired_difference(base, base)
    assert (alike.value, alike.standard_error, alike.differing) == (0, 0, 0)
    assert not alike.is_distinct


def test_pairing_finds_what_counts_alone_do_not():
    rng = np.random.default_rng(4)
    b = rng.random(2000) < 0.9
    a = b.copy()
    a[np.flatnonzero(~b)[:20]] = True
    paired, apart = paired_difference(a, b), unpaired_difference(accuracy(a), accuracy(b))
    assert paired.value == pytest.approx(apart.value) == pytest.approx(1.0)
    assert paired.is_ahead
    assert not apart.is_distinct
    assert apart.standard_error == pytest.approx(math.hypot(accuracy(a).standard_error, accuracy(b).standard_error))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40))
def test_median_interval_by_order_statistics(values):
    middle, low, high = median_interval(values)
    assert middle == statistics.median(values)
    ordered, n = sorted(values), len(values)
    covering = [j for j in range(1, n // 2 + 1) if 2 * binom.cdf(j - 1, n, 0.5) <= 0.05]
    if n < 6:
        assert not covering
        assert (low, high) == (None, None)
    else:
        assert (low, high) == (ordered[max(covering) - 1], ordered[n - max(covering)])


def test_what_is_refused():
    sound = np.zeros((2, 5), bool)
    for wrong in (np.zeros(5), np.zeros(1, bool), np.zeros((1, 2, 5), bool), np.zeros((0, 5), bool)):
        with pytest.raises(ValueError, match=r"a must be bool, \(seeds, images\)"):
            paired_difference(wrong, sound)
    with pytest.raises(ValueError, match="of the same images, but got 5 and 4"):
        paired_difference(sound, np.zeros((2, 4), bool))
    with pytest.raises(ValueError, match="of the same seeds, or one of them of one run, but got 2 and 3"):
        paired_difference(sound, np.zeros((3, 5), bool))
    with pytest.raises(ValueError, match="but got 3 of 2"):
        binomial(3, 2)
    with pytest.raises(ValueError, match="at least one number"):
        median_interval([])
    assert Estimate(1, 0.4, 0, 2, 10, 1).is_ahead
