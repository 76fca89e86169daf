"""Does a criterion that marks the foreground better also prune better? A rank correlation, and how sure it is."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from entropatch.extras import require

DRAWS = 2000
PERMUTATIONS = 50_000  # at most; all of them for up to eight criteria
FEWEST = 4  # criteria; three can be in order by chance one time in six


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of AUROC and accuracy over criteria.

    Attributes:
        correlation: in [-1, 1].
        low, high: 95 % interval for these very criteria, from the errors of what was measured: images and accuracies.
            Criteria that are nearly level change places in it, so it may lie nearer to 0 than the correlation.
        p: two-sided, of a permutation test: how often criteria matched at random correlate as much. It is about
            other criteria too, of which there are few, and orders of one entropy are no independent ones.
        criteria, images: how many.
    """

    correlation: float
    low: float
    high: float
    p: float
    criteria: int
    images: int


def agreement(aurocs: np.ndarray, accuracies: np.ndarray, errors: np.ndarray | None = None, seed: int = 0) -> Agreement:
    """How far the criteria's order by mean AUROC is their order by accuracy.

    The interval is that of a bootstrap: images are drawn with replacement, the same for all criteria, and each
    accuracy from a normal distribution with its standard error (which takes the accuracies for independent; measured
    on the same images they differ by less, so the interval is rather too wide).

    Args:
        aurocs: (criteria, images); images that differ in nothing but the object's size should be one, their mean.
        accuracies: (criteria,), in any unit.
        errors: (criteria,), standard errors in that unit; None takes the accuracies as exact.
        seed: of the bootstrap.

    Raises:
        ValueError: fewer than four criteria, arrays that do not fit, or values that are all the same.
        ImportError: SciPy is not installed.
    """
    stats: Any = require("scipy.stats", "figures")
    if aurocs.ndim != 2 or len(aurocs) < FEWEST or accuracies.shape != (len(aurocs),):
        raise ValueError(
            f"aurocs must be (criteria, images) and accuracies (criteria,), of at least {FEWEST} criteria, but got "
            f"{aurocs.shape} and {accuracies.shape}."
        )
    means = aurocs.mean(1)
    if np.ptp(means) == 0 or np.ptp(accuracies) == 0:
        raise ValueError("there is no order where all AUROCs, or all accuracies, are the same.")
    random = np.random.default_rng(seed)
    images = aurocs.shape[1]
    drawn = random.multinomial(images, np.full(images, 1 / images), DRAWS) @ aurocs.T / images
    noise = 0.0 if errors is None else random.standard_normal((DRAWS, len(errors))) * errors
    found = _spearman(drawn, accuracies + noise, stats)
    low, high = np.quantile(found, [0.025, 0.975])
    value = float(_spearman(means[None], accuracies[None], stats)[0])
    matched = _spearman(means[_orders(len(means), random)], accuracies[None], stats)
    p = float((np.abs(matched) >= abs(value) - 1e-9).mean())
    return Agreement(value, float(low), float(high), p, len(aurocs), images)


def _orders(n: int, random: np.random.Generator) -> np.ndarray:
    """Every order of n things, or many at random with the given one first: (orders, n)."""
    if math.factorial(n) <= PERMUTATIONS:
        return np.array(list(itertools.permutations(range(n))))
    return np.concatenate((np.arange(n)[None], random.permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1)))


def _spearman(a: np.ndarray, b: np.ndarray, stats: Any) -> np.ndarray:
    """Row by row: (n, criteria) and (n or 1, criteria) -> (n,)."""
    ranks = [stats.rankdata(np.broadcast_to(values, a.shape), axis=1) for values in (a, b)]
    first, second = (one - one.mean(1, keepdims=True) for one in ranks)
    spread = np.sqrt(np.square(first).sum(1) * np.square(second).sum(1))
    return (first * second).sum(1) / np.where(spread > 0, spread, np.inf)
