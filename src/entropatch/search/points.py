"""The settings of a search: what is tried, as points of a grid that Optuna's trials stand for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from entropatch.config import PruneConfig, method_config
from entropatch.criteria import Random
from entropatch.methods import find_method

DENSE = "dense"
RANDOM = "random"
TRAINING_FREE = "training-free"
FINETUNED = "finetuned"
SCOPES = (TRAINING_FREE, FINETUNED)
LARGEST_SEED = 2**31 - 1

# The "method" of an Optuna parameter space, which may never change in a study; orders are a parameter of their own.
FAMILIES = (DENSE, RANDOM, "evit", "evit-drop", "renyi", "renyi-inf")


@dataclass(frozen=True)
class Point:
    """One setting to try.

    Attributes:
        method: "dense", or the name of one of `entropatch.methods`.
        keep_rate: ρ in (0, 1]; None for dense.
        seed: of training; of the scores of random pruning.
    """

    method: str
    keep_rate: float | None
    seed: int

    @property
    def name(self) -> str:
        """For file names and messages: "renyi-2-0.7-seed-0"."""
        rate = "" if self.keep_rate is None else f"-{self.keep_rate!r}"
        return f"{self.method}{rate}-seed-{self.seed}"

    @property
    def label(self) -> str:
        """For tables and figures."""
        return "Dense" if self.method == DENSE else find_method(self.method).label

    def config(self, blocks: Sequence[int] | None, scope: str) -> PruneConfig | None:
        """What is pruned; None for dense.

        Random pruning draws by the point's seed; in training it draws anew at every step, from the run's seed.
        """
        if self.method == DENSE:
            return None
        assert self.keep_rate is not None
        config = method_config(self.method, self.keep_rate, blocks)
        if self.method == RANDOM:
            config = replace(config, criterion=Random(seed=self.seed if scope == TRAINING_FREE else None))
        return config

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return {"method": self.method, "keep_rate": self.keep_rate, "seed": self.seed}

    def parameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values and distributions of the trial's Optuna parameters: method, order, keep_rate and seed, those it has.

        An order is a number of its own beside the family "renyi" (Shannon is order 1), since Optuna does not let a list
        of choices grow, while a search may be continued with more orders.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        order = None if self.method == DENSE else find_method(self.method).order
        finite = order is not None and order <= sys.float_info.max
        values: dict[str, Any] = {"method": "renyi" if finite else self.method, "seed": self.seed}
        kinds: dict[str, Any] = {"method": CategoricalDistribution(FAMILIES), "seed": IntDistribution(0, LARGEST_SEED)}
        if finite:
            values["order"] = order
            kinds["order"] = FloatDistribution(sys.float_info.min, sys.float_info.max)
        if self.keep_rate is not None:
            values["keep_rate"] = self.keep_rate
            kinds["keep_rate"] = FloatDistribution(0.0, 1.0)
        return values, kinds


def known_method(name: str) -> str:
    """The one name of a method: "renyi-2.0" is "renyi-2", and "renyi-1" is "shannon". Errors as of `find_method`."""
    if name == DENSE:
        return name
    method = find_method(name)
    return "shannon" if method.order == 1 else method.name


def grid(rates: Mapping[str, Iterable[float]], seeds: Sequence[int], scope: str) -> list[Point]:
    """Every method at each of its keep rates with every seed.

    Args:
        rates: the keep rates of each method; dense has none, and is tried once for each seed.
        seeds: without training only random pruning depends on a seed, so the other methods are tried with the first.
        scope: one of `SCOPES`.
    """
    points = []
    for method, own in rates.items():
        for rate in (None,) if method == DENSE else own:
            drawn = seeds if scope == FINETUNED or method == RANDOM else seeds[:1]
            points += [Point(method, rate, seed) for seed in drawn]
    return points
