"""The settings of a search: what is tried, as points of a grid that Optuna's trials stand for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from entropatch.config import PruneConfig
from entropatch.config_fields import mapped
from entropatch.criteria import Criterion, Random
from entropatch.measure.variants import Variant, takes_keep_rate
from entropatch.methods import DENSE, find_method

TRAINING_FREE = "training-free"
FINETUNED = "finetuned"
SCOPES = (TRAINING_FREE, FINETUNED)
LARGEST_SEED = LARGEST_NUMBER = 2**31 - 1
ORDERS = "renyi-<order>"  # all finite orders of the paper's method, as one family; no method can have that name


@dataclass(frozen=True)
class Point(Variant):
    """One setting to try.

    Attributes:
        seed: of training; of the scores of random pruning.
    """

    seed: int = 0

    @property
    def name(self) -> str:
        """For file names and messages: "renyi-2-0.7-seed-0"."""
        rate = "" if self.keep_rate is None else f"-{self.keep_rate!r}"
        return f"{self.method}{rate}-seed-{self.seed}"

    @property
    def is_random(self) -> bool:
        """Whether chance says which patches stay."""
        return self.method != DENSE and find_method(self.method).is_random

    @property
    def family(self) -> str:
        """What the study's table of methods calls it: the method's name, or `ORDERS` for the orders among them."""
        if self.method == DENSE:
            return DENSE
        method = find_method(self.method)
        finite = method.order is not None and method.order <= sys.float_info.max
        return ORDERS if method.drops_by_entropy and finite else method.name

    def pruning(self, blocks: Sequence[int] | None, scope: str) -> PruneConfig | None:
        """What is pruned; None for dense.

        Random pruning draws by the point's seed; in training it draws anew at every step, from the run's seed.
        """
        config, seed = self.config(blocks), self.seed if scope == TRAINING_FREE else None
        if config is None:
            return None

        def seeded(criterion: Criterion) -> Criterion:
            return replace(criterion, seed=seed) if isinstance(criterion, Random) else criterion

        return replace(config, criterion=mapped(config.criterion, seeded))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return {"method": self.method, "keep_rate": self.keep_rate, "seed": self.seed}

    def parameters(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values and distributions of the trial's Optuna parameters: method, order, keep_rate and seed, those it has.

        Args:
            number: of the point's `family` in the study's table of methods. Optuna lets a range of numbers grow, but no
                list of choices, while a search may be continued with more methods; so an order is a number too.
        """
        from optuna.distributions import FloatDistribution, IntDistribution

        values: dict[str, Any] = {"method_number": number, "seed": self.seed}
        kinds: dict[str, Any] = {name: IntDistribution(0, LARGEST_NUMBER) for name in values}
        if self.family == ORDERS:
            values["order"] = self.order
            kinds["order"] = FloatDistribution(sys.float_info.min, sys.float_info.max)
        if self.keep_rate is not None:
            values["keep_rate"] = self.keep_rate
            kinds["keep_rate"] = FloatDistribution(0.0, 1.0)
        return values, kinds


def known_method(name: str) -> str:
    """The one name of a method: "renyi-2.0" is "renyi-2", and "renyi-1" is "shannon". Errors as of `find_method`."""
    return name if name == DENSE else find_method(name).name


def grid(rates: Mapping[str, Iterable[float]], seeds: Sequence[int], scope: str) -> list[Point]:
    """Every method at each of its keep rates with every seed.

    Args:
        rates: the keep rates of each method; dense, and a method that takes none, is tried once for each seed.
        seeds: without training only random pruning depends on a seed, so the other methods are tried with the first.
        scope: one of `SCOPES`.
    """
    points = []
    for method, own in rates.items():
        for rate in own if takes_keep_rate(method) else (None,):
            drawn = seeds if scope == FINETUNED or Point(method).is_random else seeds[:1]
            points += [Point(method, rate, seed) for seed in drawn]
    return points
