"""How sure a figure is: top-1 over test images and seeds, the difference of two methods, the median of paired rounds.

Everything here starts from which test images came out right, a bool array (seeds, images), or (images,) for one run.
Every run must have seen the same images in the same order. Values and errors are in percent (points).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

MULTIPLE = 2.0  # a difference of more standard errors than this is one
FEWEST = 6  # differing images; with fewer, all on one side, a sign test gives 2 · 2⁻⁵ = 0.06 at best
LEVEL = 0.95  # of every interval
RESAMPLES, SEED = 10_000, 0  # of every bootstrap, unless said otherwise


@dataclass(frozen=True)
class Estimate:
    """A mean over images and seeds, or a difference of two, in percent (points).

    Attributes:
        value: the mean.
        standard_error: of the mean; 0 where no image tells anything apart, which says that nothing was seen, not that
            nothing is there.
        low, high: 95 % interval.
        images, seeds: what it was taken over.
        differing: for a difference, images that came out otherwise in any seed; None where that is not known.
    """

    value: float
    standard_error: float
    low: float
    high: float
    images: int
    seeds: int
    differing: int | None = None

    @property
    def is_ahead(self) -> bool:
        """For a difference: whether it exceeds 2 standard errors, and at least 6 images tell the two apart."""
        return self.is_distinct and self.value > 0

    @property
    def is_distinct(self) -> bool:
        """For a difference: whether one of the two is ahead of the other."""
        enough = self.differing is None or self.differing >= FEWEST
        return abs(self.value) > MULTIPLE * self.standard_error and enough


def binomial(right: int, images: int) -> Estimate:
    """The accuracy of one run by its counts alone.

    The standard error is √(p (1 − p) / N); at 0 and 100 % it is 0. The interval is Wilson's (1927), which is never of
    zero width: at 100 % of N images it reaches down to N / (N + z²), 96.3 % of 100 images (z = 1.96).

    Raises:
        ValueError: no images, or more right than there are.
    """
    if images < 1 or not 0 <= right <= images:
        raise ValueError(f"right must lie in 0 … images, of at least one image, but got {right} of {images}.")
    p, z = right / images, NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(p * (1 - p) / images + (z / (2 * images)) ** 2)
    low, high = max(0.0, middle - half), min(1.0, middle + half)  # rounding may step over
    error = math.sqrt(p * (1 - p) / images)
    return Estimate(100 * p, 100 * error, 100 * low, 100 * high, images, 1)


def accuracy(correct: ArrayLike, *, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Top-1 of one method: `binomial` for one run; over several seeds as in `paired_difference`.

    Args:
        correct: which images came out right, bool, (seeds, images) or (images,).
        resamples, seed: of the bootstrap over several seeds.

    Raises:
        ValueError: not such an array, or of no image, or several runs of one image.
    """
    rows = _rows(correct, "correct", 1 if np.ndim(correct) == 1 else 2)
    if len(rows) == 1:
        return binomial(int(rows.sum()), rows.shape[1])
    return _estimate(rows.astype(np.int8), resamples, seed)


def paired_difference(a: ArrayLike, b: ArrayLike, *, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Top-1 of a less that of b, on the same images, and with the same seeds.

    D = a − b is 1, 0 or −1 for each of S seeds and N images: an effect of the seed, which all images share, one of the
    image, which all seeds share, and a rest. Then, by the analysis of variance of two crossed random effects
    (Cornfield and Tukey 1956),

        standard error² = (M_image + max(0, M_seed − M_rest)) / (S N)

    with the mean squares M_image = S Σ (D̄_i − D̄)² / (N − 1), M_seed = N Σ (D̄_s − D̄)² / (S − 1) and M_rest of what is
    left, over (S − 1)(N − 1). With one seed that is the variance of D over N; what other seeds would give is then not
    in it. The interval is that of a two-level bootstrap, percentiles 2.5 and 97.5: images are drawn with replacement,
    the same for all seeds, and S − 1 of the S seeds with replacement (so that their mean varies as it should and not by
    (S − 1) / S of it), whose effects are shrunk to the variance that the formula leaves them (Carpenter, Goldstein and
    Rasbash 2003). Three seeds are few: where the seed says more than the
    images, theirs covers the truth 83 % of the time, and 2 standard errors 85 %; elsewhere both do 93 to 97 %.

    Args:
        a, b: which images came out right, bool, (seeds, images) or (images,). Row s of both is the same seed; one row
            against several, such as a method without chance, is compared with each of them.
        resamples, seed: of the bootstrap.

    Raises:
        ValueError: not such arrays, of other images, of other seeds, or with fewer than two images.
    """
    first, second = _rows(a, "a"), _rows(b, "b")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"a and b must be of the same images, but got {first.shape[1]} and {second.shape[1]}.")
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(
            f"a and b must be of the same seeds, or one of them of one run, but got {len(first)} and {len(second)}."
        )
    difference = first.astype(np.int8) - second.astype(np.int8)
    found = _estimate(difference, resamples, seed)
    return replace(found, differing=int(difference.any(0).sum()))


def of_shared_seeds(
    a: Mapping[Any, NDArray[np.bool_]], b: Mapping[Any, NDArray[np.bool_]]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The runs by seed of two methods as `paired_difference` takes them: those of the seeds that both have; all of them
    where they share none, each (seeds, images)."""
    seeds = [seed for seed in a if seed in b]
    one, other = ([by[seed] for seed in seeds] if seeds else list(by.values()) for by in (a, b))
    return np.stack(one), np.stack(other)


def ahead(a: ArrayLike, b: ArrayLike) -> bool:
    """Whether a is ahead of b: by more than 2 standard errors of their paired difference, and with at least 6 images
    that tell them apart. Arguments and errors as of `paired_difference`."""
    return paired_difference(a, b, resamples=0).is_ahead


def unpaired_difference(a: Estimate, b: Estimate) -> Estimate:
    """a less b where it is not known which images came out right: standard error √(e_a² + e_b²), interval ± 1.96 of it.

    On the same images the paired error is smaller, often by half; so this one misses differences and invents none.
    """
    error = math.hypot(a.standard_error, b.standard_error)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    value, images = a.value - b.value, min(a.images, b.images)
    return Estimate(value, error, value - half, value + half, images, min(a.seeds, b.seeds))


def median_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The median, and an interval that covers the true one at least 95 % of the time, whatever the distribution.

    The interval is from the j-th lowest to the j-th highest value, j the largest with 2 · P(Bin(n, ½) < j) ≤ 5 %. It
    asks only that the values are independent. Below 6 values there is none, and both its ends are None.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("values must hold at least one number, but got none.")
    ordered, n = sorted(values), len(values)
    left_out, tail = 0, 1  # values left out at each end, Σ_{i ≤ left_out} C(n, i)
    while 2 * tail <= (1 - LEVEL) * 2**n:
        left_out += 1
        tail += math.comb(n, left_out)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return (middle, ordered[left_out - 1], ordered[n - left_out]) if left_out else (middle, None, None)


def _rows(correct: ArrayLike, name: str, least: int = 2) -> NDArray[np.bool_]:
    found = np.asarray(correct)
    if found.dtype != bool or found.ndim not in (1, 2) or found.shape[-1] < least or not found.size:
        raise ValueError(
            f"{name} must be bool, (seeds, images) or (images,), of at least {least} images, "
            f"but got {found.dtype} of shape {found.shape}."
        )
    return np.atleast_2d(found)


def _estimate(values: NDArray[np.int8], resamples: int, seed: int) -> Estimate:
    """Mean, standard error and interval of values (seeds, images), as `paired_difference` says."""
    seeds, images = values.shape
    by_image, by_seed = values.mean(0), values.mean(1)
    mean = by_image.mean()
    of_images = seeds * np.square(by_image - mean).sum() / (images - 1)
    of_seeds = of_rest = 0.0
    if seeds > 1:
        of_seeds = images * np.square(by_seed - mean).sum() / (seeds - 1)
        rest = values - by_image - by_seed[:, None] + mean
        of_rest = np.square(rest).sum() / ((seeds - 1) * (images - 1))
    left = max(0.0, of_seeds - of_rest)
    error = math.sqrt((of_images + left) / values.size)
    low = high = mean
    if resamples:
        random = np.random.default_rng(seed)
        # Images with the same mean are alike, so drawing how many of each there are is drawing images.
        kinds, counts = np.unique(by_image, return_counts=True)
        drawn = random.multinomial(images, counts / images, resamples) @ kinds / images
        if left:
            effects = (by_seed - mean) * math.sqrt(left / of_seeds)
            drawn += random.choice(effects, (resamples, seeds - 1)).mean(1)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value, error, low, high = (100 * float(number) for number in (mean, error, low, high))
    return Estimate(value, error, low, high, images, seeds)
